"""Resuming through PatchTrainer: exact, a seek, the same run or none, and rolling back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchtrain import PatchtrainError, UsageError
from patchtrain.runs import RunFolder
from patchtrain.training.checkpoint import Checkpoint
from patchtrain.training.identity import MAY_CHANGE
from patchtrain.training.resuming import LossWindow
from tests.models import tiny_model
from tests.training.test_trainer import corpus, trainer


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a run's checkpoints of steps 3, 6, 9 and 10; the switch is at step 4."""
    run = trainer(tmp_path / "run", save_steps=3, save_total_limit=9)
    run.train()
    return tmp_path / "run"


def test_a_checkpoint_between_two_logs_loses_no_loss(tmp_path: Path) -> None:
    rows = []
    for name, save_steps in (("whole", 99), ("parts", 3)):
        run = trainer(tmp_path / name, save_steps=save_steps, logging_steps=5, save_total_limit=9)
        run.train()
        if name == "parts":
            run = trainer(tmp_path / name, save_steps=3, logging_steps=5, save_total_limit=9)
            run.train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-3"))
        rows.append([row["loss"] for row in RunFolder(tmp_path / name).metrics("train")])
    assert rows[0] == rows[1]


def test_a_window_whose_total_is_a_whole_number_beyond_64_bits() -> None:
    window = LossWindow(torch.device("cpu"))
    window.load({"total": 10**30, "steps": 1})
    assert window.drain() == pytest.approx(1e30)


def test_true_takes_the_newest_whole_one_and_says_what_it_left_out(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (9, 10):
        file = next((saved / f"checkpoint-{step}" / "optimizer").iterdir())
        file.write_bytes(file.read_bytes()[:-1])
    run = trainer(saved, save_steps=3, save_total_limit=9)
    run.train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert "checkpoint-10 is left out: " in said
    assert "checkpoint-9 is left out: " in said
    assert "going on after step 6 of 10" in said
    assert RunFolder(saved).info()["resumed"][0]["step"] == 6
    assert Checkpoint.at(saved / "checkpoint-10").info()["step"] == 10
    Checkpoint.at(saved / "checkpoint-10").verify()


def test_true_begins_at_the_start_where_nothing_is_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path)
    run.train(resume_from_checkpoint=True)
    assert "no checkpoint in" in capsys.readouterr().err
    assert run.state.global_step == 10


def test_one_that_is_asked_for_must_be_whole(saved: Path) -> None:
    (saved / "checkpoint-6" / "trainer_state.json").unlink()
    with pytest.raises(PatchtrainError, match=r"trainer_state.json is missing"):
        trainer(saved, save_steps=3, save_total_limit=9).train(str(saved / "checkpoint-6"))
    with pytest.raises(PatchtrainError, match="is not a checkpoint"):
        trainer(saved).train(str(saved / "nothing"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 3}, r"seed\.seed is 3 and was 42; .*start another run with out="),
        ({"plan": {"steps": 11}}, r"plan\.steps is 11 and was 10"),
        ({"plan": {"patch_size": 4}}, r"stage 1\.patch_size is 4 and was 2"),
        ({"weight_decay": 0.5}, r"optimizer\.weight_decay is 0\.5 and was 0\.1"),
        ({"learning_rate": 1e-3}, r"allow it with --allow-change learning_rate$"),
        ({"logging_steps": 7}, r"logging\.logging_steps is 7 and was 10; allow it"),
    ],
)
def test_another_run_is_refused_by_name(saved: Path, values: dict[str, Any], message: str) -> None:
    settings = {"save_steps": 3, "save_total_limit": 9, **values}
    with pytest.raises(UsageError, match=message):
        trainer(saved, **settings).train(True)


def test_another_model_and_other_tokens_are_refused(saved: Path) -> None:
    same = {"save_steps": 3, "save_total_limit": 9}
    with pytest.raises(UsageError, match=r"model\.hidden_size is 16 and was 32"):
        trainer(saved, model=tiny_model(hidden_size=16), **same).train(True)
    run = trainer(saved, **same)
    from patchtrain import PatchTrainer

    other = PatchTrainer(tiny_model(), run.args, corpus(seed=5), eval_dataset=corpus(500))
    with pytest.raises(UsageError, match="store is '"):
        other.train(True)


def test_several_differences_are_all_named(saved: Path) -> None:
    run = trainer(saved, save_steps=3, save_total_limit=9, seed=3, learning_rate=1.0)
    with pytest.raises(UsageError, match=r"learning_rate is 1\.0 and was 0\.01; seed\.seed is 3"):
        run.train(True)
    with pytest.raises(UsageError, match=r"seed\.seed is 3"):
        run.train(True, allow_change=["learning_rate"])


def test_only_some_things_may_change(saved: Path) -> None:
    with pytest.raises(
        UsageError, match="seed cannot be allowed to change, only learning_rate, logging"
    ):
        trainer(saved).train(True, allow_change=["seed"])
    assert set(MAY_CHANGE) == {"learning_rate", "logging", "processes"}


def test_a_changed_rate_and_changed_intervals_hold_from_there_on(saved: Path) -> None:
    run = trainer(saved, save_steps=3, save_total_limit=9, learning_rate=2e-2, logging_steps=1)
    at_six = str(saved / "checkpoint-6")
    run.train(at_six, allow_change=["learning_rate", "logging"])
    rows = {row["step"]: row["learning_rate"] for row in RunFolder(saved).metrics("train")}
    assert {7, 8, 9, 10} <= rows.keys()
    assert rows[7] == pytest.approx(2e-2 * run.plan.rate_at(6))
    assert rows[1] == pytest.approx(1e-2 * run.plan.rate_at(0))


def test_resuming_reads_nothing_of_what_came_before(tmp_path: Path) -> None:
    """A checkpoint said to be of step 1,000,000 asks for the data of that step first."""
    plan = {"steps": 1_000_003, "max_epochs": 1e4, "warmup_steps": 1}
    settings: dict[str, Any] = {"plan": plan, "eval_strategy": "no", "save_strategy": "no"}
    from patchtrain import PatchTrainer

    args = trainer(tmp_path, **{**settings, "plan": {**plan, "steps": 10}}).args
    args.plan = {**args.plan, "steps": plan["steps"]}
    run = PatchTrainer(tiny_model(), args, corpus(60_000))
    far = 1_000_000
    run.create_optimizer_and_scheduler(run.plan.total_steps)
    run.state.global_step, run.state.max_steps = far, run.plan.total_steps
    run.state.train_batch_size = 4
    run._save_checkpoint(run.model, None)
    again = PatchTrainer(tiny_model(), args, corpus(60_000))
    read: list[int] = []
    inputs = again.batches.inputs

    def noted(step: int, process: int = 0) -> dict[str, np.ndarray]:
        read.append(step)
        return inputs(step, process)

    again.batches.inputs = noted  # type: ignore[method-assign]
    again.train(True)
    assert read == [far, far + 1, far + 2]
    assert again.state.global_step == far + 3


def test_rolling_back_undoes_weights_and_optimizer_and_stays_at_its_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_steps=3, save_total_limit=9)
    taken: dict[int, dict[str, torch.Tensor]] = {}

    from transformers import TrainerCallback

    class Back(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            taken[state.global_step] = weights(run)
            if state.global_step == 8:
                assert run.roll_back() == 6
                taken[0] = weights(run)
                assert state.global_step == 8

    run.add_callback(Back())
    run.train()
    assert equal(taken[0], taken[6])
    assert not equal(taken[0], taken[8])
    (state, *_) = run.optimizer.state_dict()["state"].values()
    assert state["step"] == 6 + 2  # two more steps were made after it
    assert RunFolder(tmp_path).info()["status"] == "finished"


def test_without_a_checkpoint_there_is_no_rolling_back(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert run.roll_back() is None


def test_a_schedule_of_ones_own_is_kept(tmp_path: Path) -> None:
    from patchtrain import PatchTrainer

    def run(**kwargs: Any) -> PatchTrainer:
        base = trainer(tmp_path, save_steps=3, save_total_limit=9, logging_steps=1)
        model = tiny_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return PatchTrainer(model, base.args, corpus(), optimizers=(optimizer, scheduler))

    first = run()
    first.train()
    second = run()
    second.train(str(tmp_path / "checkpoint-6"))
    assert equal(weights(first), weights(second))


@pytest.mark.parametrize(
    "name", ["load_best_model_at_end", "save_only_model", "push_to_hub", "enable_jit_checkpoint"]
)
def test_what_whole_checkpoints_cannot_do_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not supported: "):
        trainer(tmp_path, **{name: True})
    with pytest.raises(UsageError, match="keep_every must be at least 1"):
        trainer(tmp_path, keep_every=0)


def test_every_so_many_checkpoints_stay(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_steps=2, save_total_limit=1, keep_every=2)
    run.train()
    assert [checkpoint.step for checkpoint in run.checkpoints.all()] == [4, 8, 10]


def test_the_identity_survives_json(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    assert json.loads(json.dumps(run.identity)) == run.identity


def test_where_all_checkpoints_are_damaged_nothing_is_thrown_away(saved: Path) -> None:
    for folder in saved.glob("checkpoint-*"):
        file = next((folder / "weights").iterdir())
        file.write_bytes(file.read_bytes()[:-1])
    before = (saved / "metrics.jsonl").read_bytes()
    with pytest.raises(PatchtrainError, match=r"no checkpoint in .* is whole .*--overwrite"):
        trainer(saved, save_steps=3, save_total_limit=9).train(True)
    assert (saved / "metrics.jsonl").read_bytes() == before
    assert len(list(saved.glob("checkpoint-*"))) == 4


def test_one_that_cannot_be_read_or_is_of_another_version_is_no_damage(saved: Path) -> None:
    file = saved / "checkpoint-10" / "checkpoint.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({**info, "format_version": 2}))
    with pytest.raises(PatchtrainError, match="has checkpoint format 2, this patchtrain reads 1"):
        trainer(saved, save_steps=3, save_total_limit=9).train(True)


def test_going_back_sets_what_came_later_aside(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(saved, save_steps=3, save_total_limit=9)
    run.train(str(saved / "checkpoint-6"))
    assert "checkpoint-9 is of what came later, and now called checkpoint-9.aside" in (
        capsys.readouterr().err
    )
    names = sorted(path.name for path in saved.glob("checkpoint-*"))
    assert names == ["checkpoint-10", "checkpoint-10.aside", "checkpoint-3", "checkpoint-6",
                     "checkpoint-9", "checkpoint-9.aside"]  # fmt: skip


def test_a_new_run_in_an_old_folder_does_not_roll_back_to_the_old_one(saved: Path) -> None:
    run = trainer(saved, seed=7, save_strategy="no")
    run.train()
    assert run.roll_back() is None
    assert len(list(saved.glob("checkpoint-*.aside"))) == 4


@pytest.mark.parametrize("optim", ["adafactor", "sgd", "rmsprop", "adamw_torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_optimizers_go_on_exactly(tmp_path: Path, optim: str, dtype: torch.dtype) -> None:
    def run() -> Any:
        settings = {"optim": optim, "save_steps": 3, "save_total_limit": 9}
        return trainer(tmp_path, model=tiny_model().to(dtype), **settings)

    whole = run()
    whole.train()
    again = run()
    again.train(str(tmp_path / "checkpoint-6"))
    assert equal(weights(whole), weights(again))


def test_state_in_the_parameter_groups_comes_back(tmp_path: Path) -> None:
    """Schedule-free optimizers, Prodigy and one-cycle schedules keep some of it there."""
    from patchtrain import PatchTrainer

    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
                group["weight_decay"] = 0.01 * group["k"]
            return super().step(closure)

    def run() -> PatchTrainer:
        base = trainer(tmp_path, save_steps=3, save_total_limit=9)
        model = tiny_model()
        optimizer = Counting(model.parameters(), lr=1e-2)
        return PatchTrainer(model, base.args, corpus(), optimizers=(optimizer, None))

    whole, again = run(), run()
    whole.train()
    again.train(str(tmp_path / "checkpoint-6"))
    assert again.optimizer.param_groups[0]["k"] == 10
    assert equal(weights(whole), weights(again))


def test_a_schedule_that_json_would_change_is_refused(tmp_path: Path) -> None:
    from patchtrain import PatchTrainer

    base = trainer(tmp_path, save_steps=3)
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 8])
    run = PatchTrainer(model, base.args, corpus(), optimizers=(optimizer, scheduler))
    with pytest.raises(PatchtrainError, match="the scheduler MultiStepLR cannot be kept"):
        run.train()


def test_callbacks_with_a_state_go_on(tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    def run() -> Any:
        made = trainer(
            tmp_path, save_steps=2, save_total_limit=9, eval_steps=1, learning_rate=1e-9,
            metric_for_best_model="eval_loss", greater_is_better=False,
            restore_callback_states_from_checkpoint=True,
        )  # fmt: skip
        made.add_callback(EarlyStoppingCallback(5, 1.0))
        return made

    whole, again = run(), run()
    whole.train()
    assert whole.state.global_step < 10
    again.train(str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == whole.state.global_step


@pytest.mark.parametrize("name", ["save_strategy", "eval_strategy", "logging_strategy"])
def test_strategies_that_count_no_steps_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=epoch is not supported"):
        trainer(tmp_path, **{name: "epoch"})


def test_a_model_with_a_state_of_its_own_kind_is_refused(tmp_path: Path) -> None:
    from patchtrain.training.state import write_weights

    class Odd(torch.nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            pass

    with pytest.raises(PatchtrainError, match="_extra_state as dict, which a checkpoint cannot"):
        write_weights(Odd(2, 2), tmp_path)
