"""A loss or gradient that is no number: nothing of it reaches weights, log or checkpoints."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from patchtrain import PatchConfig, PatchTrainer, PatchtrainError, UsageError
from patchtrain.runs import RunFolder
from patchtrain.training import guard
from tests.models import VOCAB, tiny_model
from tests.training.several import call
from tests.training.test_documents import documents, split

T, STEPS, ROWS, BAD = 8, 10, 8, VOCAB - 1


def tokens() -> np.ndarray:
    """Tokens with something to learn, none of which is BAD."""
    rng = np.random.default_rng(0)
    moves = np.where(rng.random(6000) < 0.8, 1, rng.integers(0, BAD, 6000))
    return (np.cumsum(moves) % BAD).astype(np.uint16)


class Names:
    """As much of a tokenizer as is needed."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    def save_pretrained(self, folder: Any) -> None:
        pass


def trainer(folder: Path, **values: Any) -> PatchTrainer:
    """Ten steps: 0 to 3 at patches of 2, 4 to 9 at token level, two passes of four rows each."""
    plan = {
        "preset": "superposition",
        "context_length": T,
        "tokens_per_step": ROWS * T,
        "patch_size": 2,
        "step_fraction": 0.4,
        "steps": STEPS,
        **values.pop("plan", {}),
    }
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True,
                "logging_steps": 1, "save_strategy": "no", "use_cpu": True}  # fmt: skip
    data, validation = values.pop("data", None), values.pop("validation", None)
    args = PatchConfig(str(folder), plan=plan, **{**settings, **values})
    data = tokens() if data is None else data
    run = PatchTrainer(tiny_model(), args, data, eval_dataset=validation)
    run.processing_class = Names()
    return run


def spoil(run: PatchTrainer, *steps: int, value: float = math.nan, rows: int = ROWS) -> None:
    """Make the hidden states of the first ``rows`` rows of a pass ``value`` in these steps."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if module.training and run.state.global_step in steps:
            output = torch.cat([output[:rows] * value, output[rows:]])
        return output

    run.model.model.norm.register_forward_hook(hook)


def spoil_token(run: PatchTrainer) -> None:
    """Make the embedding of the token BAD nan while training."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        bad = (args[0] == BAD)[..., None]  # elsewhere not even the order of sums may change
        return output.masked_fill(bad, math.nan) if module.training and bad.any() else output

    run.model.get_input_embeddings().register_forward_hook(hook)


def plant(run: PatchTrainer, step: int, row: int) -> None:
    """Put the token BAD into one row of one step."""
    read = run.batches.inputs

    def inputs(number: int, process: int = 0) -> Any:
        values = read(number, process)
        share = ROWS // run.plan.processes
        if number == step and row // share == process:
            values["input_ids"] = values["input_ids"].copy()
            values["input_ids"][row % share, 3] = BAD
        return values

    run.batches.inputs = inputs  # type: ignore[method-assign]


class Untaken(TrainerCallback):
    """Undoes the optimizer's step at some steps, by putting everything back."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self.before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            kwargs["model"].load_state_dict(self.before[0])
            kwargs["optimizer"].load_state_dict(self.before[1])


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def written(folder: Path, step: int, process: int = 0) -> dict[str, Any]:
    """What was written down of a step, which must be strict JSON."""
    file = folder / "nonfinite" / f"step-{step}" / f"process-{process}.json"
    return json.loads(file.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def strict_metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


# ---- stop


def test_a_bad_loss_stops_the_run_before_the_step_and_names_the_ways_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    spoil_token(run)
    plant(run, step=4, row=6)
    with pytest.raises(PatchtrainError) as caught:
        run.train()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("loss became nan at step 5 (tokens), before the optimizer step")
    for part in (str(tmp_path / "nonfinite" / "step-5"), "training.on_nonfinite=skip",
                 "training.on_nonfinite=rollback", "Check the data",
                 "(training.learning_rate=0.005 --allow-change learning_rate)"):  # fmt: skip
        assert part in message
    until = trainer(tmp_path / "until")
    spoil_token(until)  # has an embedding with a hook too, which takes another path
    until.add_callback(Untaken(*range(4, STEPS)))
    until.train()
    assert same_weights(run.model, until.model)
    assert RunFolder.open(tmp_path).info()["status"] == "failed"
    assert [row["step"] for row in strict_metrics(tmp_path)][-1] == 4
    assert (tmp_path / "checkpoint-4").is_dir()
    assert not (tmp_path / "checkpoint-6").exists()
    assert "forward" not in run.model.__dict__


def test_what_is_written_down_is_the_bad_pass(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    spoil_token(run)
    plant(run, step=2, row=6)
    with pytest.raises(PatchtrainError):
        run.train()
    found = written(tmp_path, 3)
    rows = run.batches.inputs(2)["input_ids"][4:].tolist()  # the second pass
    assert [entry["ids"] for entry in found["sequences"]] == rows
    assert rows[2][3] == BAD
    assert found["sequences"][2]["text"].split()[3] == f"t{BAD}"
    assert {entry["pass"] for entry in found["sequences"]} == {1}
    assert found["sequences_left_out"] == 0
    assert found["pass_losses"][1] == found["gradient_norm"] == "nan"
    assert found["pass_losses"][0] == pytest.approx(math.log(VOCAB), abs=1)
    assert (found["step"], found["stage"], found["patch_size"]) == (3, 0, 2)
    assert found["nonfinite"] == "loss"
    assert found["learning_rate"] == pytest.approx(1e-2)


def test_of_separate_documents_the_labels_are_written_too(tmp_path: Path) -> None:
    run = trainer(tmp_path, data=split(documents()), plan={"documents": "separate"})
    spoil(run, 1)
    with pytest.raises(PatchtrainError, match=r"loss became nan at step 2 \(patches of 2\)"):
        run.train()
    inputs = run.batches.inputs(1)
    found = written(tmp_path, 2)["sequences"]
    assert [entry["labels"] for entry in found] == inputs["labels"].tolist()
    assert [entry["ids"] for entry in found] == inputs["input_ids"].tolist()


def test_a_large_step_is_written_down_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_IDS", 5 * 2 * T)
    run = trainer(tmp_path)
    spoil(run, 0)
    with pytest.raises(PatchtrainError):
        run.train()
    found = written(tmp_path, 1)
    assert (len(found["sequences"]), found["sequences_left_out"]) == (5, 3)


def test_a_bad_gradient_blames_the_whole_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)

    def hook(gradient: Tensor) -> Tensor:
        return gradient * math.inf if run.state.global_step == 5 else gradient

    run.model.lm_head.weight.register_hook(hook)
    with pytest.raises(PatchtrainError, match=r"gradient became (nan|inf) at step 6 \(tokens\)"):
        run.train()
    found = written(tmp_path, 6)
    assert found["nonfinite"] == "gradient"
    assert len(found["sequences"]) == ROWS
    assert all(isinstance(loss, float) for loss in found["pass_losses"])


def test_an_infinite_loss_is_called_so(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_grad_norm=0.0)
    spoil(run, 0, value=1e38)
    with pytest.raises(PatchtrainError, match=r"(loss|gradient) became (inf|nan) at step 1"):
        run.train()


def test_a_batch_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path)
    spoil(run, 0)
    (tmp_path / "nonfinite").write_text("a file where the folder would be")
    with pytest.raises(PatchtrainError, match="loss became nan"):
        run.train()
    assert "cannot write" in capsys.readouterr().err


def test_weights_that_overflow_reach_no_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_strategy="steps", save_steps=3)

    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    run.model.lm_head.weight[7, 0] = math.inf

    run.add_callback(Overflow())
    match = r"weights \(lm_head\.weight\) became nan or infinite in step 3 .*though its loss"
    with pytest.raises(PatchtrainError, match=match):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("action", ["stop", "skip", "rollback"])
def test_a_bad_validation_loss_reaches_no_log(tmp_path: Path, action: str) -> None:
    run = trainer(tmp_path, on_nonfinite=action, validation=tokens()[:500], eval_steps=2)
    Checkpointed(run, 3)

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        spoilt = not module.training and run.state.global_step == 4 and run.is_in_train
        return output * math.nan if spoilt else output

    run.model.model.norm.register_forward_hook(hook)
    if action == "rollback":
        run.train()
        (row,) = [row for row in strict_metrics(tmp_path) if row["event"] == "rollback"]
        assert (row["step"], row["to_step"]) == (4, 3)
        assert row["what"] == "validation loss became nan after step 4 (patches of 2)"
    else:
        with pytest.raises(PatchtrainError, match="validation loss became nan after step 4"):
            run.train()
    steps = [row["step"] for row in strict_metrics(tmp_path) if row["event"] == "eval"]
    assert steps == ([2, 6, 8, 10] if action == "rollback" else [2])


# ---- skip


@pytest.mark.parametrize("switch", ["carry", "reset"])
def test_a_step_left_out_changes_no_weight(tmp_path: Path, switch: str) -> None:
    plan = {"optimizer_at_switch": switch}
    run = trainer(tmp_path / "skip", on_nonfinite="skip", plan=plan)
    spoil(run, 2, 4, 7, rows=1)  # of which 4 is the first of its stage
    run.train()
    expected = trainer(tmp_path / "expected", plan=plan)
    expected.add_callback(Untaken(2, 4, 7))
    expected.train()
    assert same_weights(run.model, expected.model)
    rows = {row["step"]: row for row in RunFolder.open(tmp_path / "expected").metrics("train")}
    found = [row for row in strict_metrics(tmp_path / "skip") if row["event"] == "train"]
    assert [row["step"] for row in found] == [1, 2, 4, 6, 7, 9, 10]
    for row in found:
        for key in ("loss", "learning_rate", "tokens", "stage"):
            assert row[key] == pytest.approx(rows[row["step"]][key]), key
    skipped = RunFolder.open(tmp_path / "skip").metrics("nonfinite")
    assert [(row["step"], row["stage"], row["action"]) for row in skipped] == [
        (3, 0, "skip"), (5, 1, "skip"), (8, 1, "skip")
    ]  # fmt: skip
    assert skipped[0]["what"].startswith("loss became nan at step 3")
    assert len(written(tmp_path / "skip", 3)["sequences"]) == ROWS


def test_the_logged_mean_is_over_the_steps_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = trainer(tmp_path / "each")
    each.add_callback(Untaken(1))
    each.train()
    losses = [row["loss"] for row in RunFolder.open(tmp_path / "each").metrics("train")]
    run = trainer(tmp_path / "run", on_nonfinite="skip", logging_steps=3, logging_first_step=False)
    spoil(run, 1)
    result = run.train()
    first = RunFolder.open(tmp_path / "run").metrics("train")[0]
    assert first["step"] == 3
    assert first["loss"] == pytest.approx((losses[0] + losses[2]) / 2)
    assert math.isfinite(result.training_loss)
    assert "warning: loss became nan at step 2" in capsys.readouterr().err


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, on_nonfinite="skip", plan={"steps": 30})
    spoil(run, 2, *range(5, 30))
    with pytest.raises(PatchtrainError, match="after 10 steps in a row were left out"):
        run.train()
    assert [row["step"] for row in strict_metrics(tmp_path) if row["event"] == "nonfinite"] == [
        3, *range(6, 16)
    ]  # fmt: skip


# ---- rollback


class Checkpointed:
    """Stands in for the run's checkpoints: one in memory, of the steps done when ``keep`` ran."""

    def __init__(self, run: PatchTrainer, *steps: int) -> None:
        self.run, self.kept = run, {0: self.now()} if 0 in steps else {}
        outer = self

        class Keep(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step in steps:
                    outer.kept[state.global_step] = outer.now()

        run.add_callback(Keep())
        run.roll_back = self.roll_back  # type: ignore[attr-defined]

    def now(self) -> Any:
        optimizer = self.run.optimizer
        state = optimizer.state_dict() if optimizer is not None else None
        return copy.deepcopy((self.run.model.state_dict(), state))

    def roll_back(self) -> int | None:
        if not self.kept:
            return None
        step = max(self.kept)
        weights, optimizer = self.kept[step]
        self.run.model.load_state_dict(weights)
        self.run.optimizer.load_state_dict(copy.deepcopy(optimizer))
        return step


def test_a_rollback_undoes_the_steps_since_and_goes_on(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", on_nonfinite="rollback")
    Checkpointed(run, 5)
    spoil(run, 7)
    run.train()
    expected = trainer(tmp_path / "expected")
    expected.add_callback(Untaken(5, 6, 7))
    expected.train()
    assert same_weights(run.model, expected.model)
    (row,) = [row for row in strict_metrics(tmp_path / "run") if row["event"] == "rollback"]
    assert (row["step"], row["to_step"]) == (8, 5)
    assert row["what"].startswith("loss became nan at step 8 (tokens)")
    assert RunFolder.open(tmp_path / "run").info()["status"] == "finished"
    assert written(tmp_path / "run", 8)["pass_losses"] == ["nan", "nan"]


@pytest.mark.parametrize("switch", ["reset", "second"])
def test_behind_the_switch_a_rollback_does_not_bring_the_old_state_back(
    tmp_path: Path, switch: str
) -> None:
    plan = {"optimizer_at_switch": switch}
    run = trainer(tmp_path / "run", on_nonfinite="rollback", plan=plan)
    Checkpointed(run, 3)
    spoil(run, 5)
    run.train()
    expected = trainer(tmp_path / "expected", plan=plan)
    expected.add_callback(Untaken(3, 4, 5))  # and at step 4 the state is reset in any case
    expected.train()
    assert same_weights(run.model, expected.model)


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(tmp_path: Path) -> None:
    run = trainer(tmp_path, on_nonfinite="rollback")
    Checkpointed(run)
    spoil(run, 1)
    with pytest.raises(PatchtrainError, match="there is no checkpoint to roll back to"):
        run.train()


def test_too_many_rollbacks_to_one_checkpoint_stop_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, on_nonfinite="rollback", plan={"steps": 20})
    Checkpointed(run, 2, 6)
    spoil(run, 3, 4, 7, 9, 11, 13)
    with pytest.raises(PatchtrainError, match="after 3 rollbacks to checkpoint-6"):
        run.train()
    rows = [row for row in strict_metrics(tmp_path) if row["event"] == "rollback"]
    assert [(row["step"], row["to_step"]) for row in rows] == [
        (4, 2), (5, 2), (8, 6), (10, 6), (12, 6)
    ]  # fmt: skip


def test_weights_that_overflow_are_rolled_back(tmp_path: Path) -> None:
    run = trainer(tmp_path, on_nonfinite="rollback", save_strategy="steps", save_steps=5)
    Checkpointed(run, 2)

    class Overflow(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                with torch.no_grad():
                    run.model.lm_head.weight[7, 0] = math.inf

    run.add_callback(Overflow())
    run.train()
    (row,) = [row for row in strict_metrics(tmp_path) if row["event"] == "rollback"]
    assert (row["step"], row["to_step"]) == (5, 2)
    assert all(weight.isfinite().all() for weight in run.model.parameters())


# ---- asking for it, and several processes


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"on_nonfinite is 'retry'; choose stop, skip, rollback"):
        trainer(tmp_path, on_nonfinite="retry")


def _one_of_two(folder: Path) -> None:
    run = trainer(folder, on_nonfinite="skip")
    spoil_token(run)
    plant(run, step=3, row=6)
    run.train()
    run.export(folder / "m")
    run.accelerator.end_training()


def test_two_processes_leave_the_same_step_out(tmp_path: Path) -> None:
    call(2, _one_of_two, tmp_path / "two")
    one = trainer(tmp_path / "one", on_nonfinite="skip")
    spoil_token(one)
    plant(one, step=3, row=6)
    one.train()
    both = [strict_metrics(tmp_path / name) for name in ("one", "two")]
    skipped = [[row for row in rows if row["event"] == "nonfinite"] for rows in both]
    assert [row["step"] for rows in skipped for row in rows] == [4, 4]
    assert skipped[1][0]["what"].startswith("loss became nan on process 1 at step 4")
    losses = [[row["loss"] for row in rows if row["event"] == "train"] for rows in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    names = [file.name for file in (tmp_path / "two" / "nonfinite" / "step-4").iterdir()]
    assert names == ["process-1.json"]
    assert written(tmp_path / "two", 4, 1)["sequences"][2]["ids"][3] == BAD


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_run_with_spoilt_steps_is_resumed_exactly(tmp_path: Path, action: str) -> None:
    """Real checkpoints, on both sides of what was left out, and between two logs."""

    def run(folder: str) -> PatchTrainer:
        made = trainer(
            tmp_path / folder, save_strategy="steps", save_steps=2, save_total_limit=None,
            logging_steps=3, on_nonfinite=action,
        )  # fmt: skip
        spoil(made, 2, 5)
        return made

    whole = run("whole")
    whole.train()
    rows = without_clock(tmp_path / "whole")
    events = [row["event"] for row in rows]
    assert events.count("nonfinite" if action == "skip" else "rollback") == 2
    for step in (2, 4, 6, 8):
        again = run("whole")
        again.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same_weights(again.model, whole.model), step
        assert without_clock(tmp_path / "whole") == rows, step


def without_clock(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what differs from one time to the next."""
    clock = ("seconds", "data_seconds", "tokens_per_s", "positions_per_s")
    return [
        {key: value for key, value in row.items() if key not in clock}
        for row in strict_metrics(folder)
    ]
