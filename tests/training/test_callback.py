"""The callback's two stages against a loop written out, in every situation Trainer puts it in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from patchtrain import PatchLevelCallback, UsageError, patch_level
from patchtrain.evaluation.perplexity import rows_loss
from patchtrain.modeling import PatchLevel
from tests.models import VOCAB, tiny_model
from tests.training.several import call

K, LENGTH, ROWS, STEPS, SWITCH = 4, 16, 8, 6, 4
RATE = 0.5


def some_rows(count: int, seed: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


class Rows(torch.utils.data.Dataset):
    """Rows of ids as the data set of an ordinary script."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[item], "labels": self.rows[item]}


def make_trainer(
    folder: Path, model: Any, *callbacks: TrainerCallback, **settings: Any
) -> tuple[Trainer, PatchLevelCallback]:
    """A plain Trainer with SGD at a constant rate on rows in their order, and the callback."""
    values: dict[str, Any] = {
        "per_device_train_batch_size": ROWS,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.0,
    }
    callback = PatchLevelCallback(patch_size=K, patch_fraction=2 / 3)
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **{**values, **settings}),
        train_dataset=Rows(some_rows(ROWS * STEPS)),
        eval_dataset=Rows(some_rows(4, seed=9)),
        callbacks=[callback, *callbacks],
    )
    return trainer, callback


def by_hand(model: Any) -> tuple[list[float], list[float]]:
    """The same training written out; token-level losses of the eval rows before every step, too."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses, held_out = [], []
    for step, ids in enumerate(some_rows(ROWS * STEPS).split(ROWS)):
        held_out.append(token_loss(model))
        with patch_level(model, K if step < SWITCH else 1):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, held_out


def token_loss(model: Any) -> float:
    nats, targets = rows_loss(model, some_rows(4, seed=9).numpy())
    return nats / targets


def logged(trainer: Trainer, name: str = "loss") -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def same_weights(model: Any, other: Any) -> None:
    for (name, got), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager", "eval_strategy": "steps"},
    ],
    ids=["plain", "accumulated", "checkpointed", "compiled"],
)
def test_losses_and_weights_are_those_of_a_loop_written_out(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")  # torch_compile leaves it set
    model, reference = tiny_model(), tiny_model()
    trainer, _ = make_trainer(tmp_path, model, **settings)
    trainer.train()
    losses, _ = by_hand(reference)
    assert logged(trainer) == pytest.approx(losses, abs=1e-4)
    same_weights(model, reference)


def test_evaluation_is_at_token_level_in_both_stages(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, tiny_model(), eval_strategy="steps", eval_on_start=True)
    trainer.train()
    _, held_out = by_hand(tiny_model())
    assert logged(trainer, "eval_loss")[:STEPS] == pytest.approx(held_out, abs=1e-4)


@pytest.mark.parametrize("saved", [2, SWITCH, SWITCH + 1])
def test_a_resumed_run_goes_on_in_its_stage(tmp_path: Path, saved: int) -> None:
    whole = tiny_model()
    trainer, _ = make_trainer(tmp_path, whole, save_strategy="steps", save_steps=saved)
    trainer.train()
    resumed = tiny_model(seed=1)
    again, _ = make_trainer(tmp_path, resumed)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    assert logged(again)[-1] == pytest.approx(logged(trainer)[-1], abs=1e-4)
    same_weights(resumed, whole)


def test_checkpoints_have_no_trace_of_patches(tmp_path: Path) -> None:
    model = tiny_model()
    trainer, _ = make_trainer(tmp_path, model, save_strategy="steps", save_steps=2)
    trainer.train()
    for step in range(2, STEPS + 1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        config = json.loads((folder / "config.json").read_text())
        assert not {name for name in config if "patch" in name}
        loaded, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
    assert "forward" not in model.__dict__
    same_weights(loaded, model)


class Watch(TrainerCallback):
    """Notes what the model is between steps and within them; may stop the run."""

    def __init__(self, stop_at: int | None = None, fail: bool = False) -> None:
        self.stop_at, self.fail = stop_at, fail
        self.within: list[bool] = []
        self.between: list[bool] = []
        self.callback: PatchLevelCallback | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.callback is not None
        self.within.append(self.callback.at_patch_level)
        if self.fail:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.callback is not None
        self.between.append(self.callback.at_patch_level)
        control.should_training_stop = state.global_step == self.stop_at


def test_patch_level_is_on_within_the_first_steps_only(tmp_path: Path) -> None:
    watch = Watch()
    trainer, watch.callback = make_trainer(tmp_path, tiny_model(), watch)
    trainer.train()
    assert watch.within == [step < SWITCH for step in range(STEPS)]
    assert not any(watch.between)


def test_a_run_that_stops_early_ends_at_token_level(tmp_path: Path) -> None:
    watch = Watch(stop_at=2)
    model = tiny_model()
    trainer, watch.callback = make_trainer(tmp_path, model, watch)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "forward" not in model.__dict__


def test_training_again_after_an_interrupt_begins_afresh(tmp_path: Path) -> None:
    watch = Watch(fail=True)
    model = tiny_model()
    trainer, watch.callback = make_trainer(tmp_path, model, watch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    watch.fail = False
    watch.within.clear()
    trainer.train()
    assert watch.within == [step < SWITCH for step in range(STEPS)]
    assert "forward" not in model.__dict__


def test_mixed_precision_keeps_the_loss_that_skips_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused: list[bool] = []
    forward = PatchLevel._forward

    def watched(handle: PatchLevel, **inputs: Any) -> Any:
        if torch.is_grad_enabled():  # not the probe
            fused.append(handle.probe.fused)
        return forward(handle, **inputs)

    monkeypatch.setattr(PatchLevel, "_forward", watched)
    trainer, _ = make_trainer(tmp_path, tiny_model(), bf16=True)
    trainer.train()
    assert fused == [True] * SWITCH
    monkeypatch.undo()
    losses, _ = by_hand(tiny_model())
    assert logged(trainer) == pytest.approx(losses, rel=1e-2)


def test_no_logged_loss_mixes_the_two_stages(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, tiny_model(), logging_steps=3)
    trainer.train()
    steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert steps == [3, SWITCH, STEPS]
    losses, _ = by_hand(tiny_model())
    means = [sum(losses[:3]) / 3, losses[3], sum(losses[4:]) / 2]
    assert logged(trainer) == pytest.approx(means, abs=1e-4)


@pytest.mark.parametrize(
    ("patch_size", "patch_fraction"),
    [(1, 0.5), (0, 0.5), (2.0, 0.5), ("4", 0.5), (4, 0.0), (4, 1.0), (4, float("nan")), (4, "0.5")],
)
def test_values_that_make_no_sense_are_refused(patch_size: Any, patch_fraction: Any) -> None:
    with pytest.raises(UsageError, match=r"patch_size must be|patch_fraction must be"):
        PatchLevelCallback(patch_size, patch_fraction)


@pytest.mark.parametrize(
    ("steps", "patch_fraction", "message"),
    [
        (4, 0.1, "patch_fraction 0.1 of 4 steps leaves none at patch level; train for more steps, "
                 "or take a larger patch_fraction"),
        (4, 0.9, "patch_fraction 0.9 of 4 steps leaves none at token level; train for more steps, "
                 "or take a smaller patch_fraction"),
        (1, 0.6, "patch_fraction 0.6 of 1 step leaves none at token level; train for more steps"),
    ],
)  # fmt: skip
def test_a_stage_without_a_step_is_refused(
    tmp_path: Path, steps: int, patch_fraction: float, message: str
) -> None:
    model = tiny_model()
    trainer, callback = make_trainer(tmp_path, model, max_steps=steps)
    callback.patch_fraction = patch_fraction
    with pytest.raises(UsageError) as refused:
        trainer.train()
    assert str(refused.value) == message
    assert trainer.state.global_step == 0
    assert "forward" not in model.__dict__


@pytest.mark.parametrize(("patch_fraction", "last"), [(0.2, 1), (0.8, 3)])
def test_one_step_of_each_stage_is_enough(tmp_path: Path, patch_fraction: float, last: int) -> None:
    watch = Watch(stop_at=4)
    trainer, watch.callback = make_trainer(tmp_path, tiny_model(), watch, max_steps=4)
    watch.callback.patch_fraction = patch_fraction
    trainer.train()
    assert watch.within == [step < last for step in range(4)]


def test_settings_that_cannot_work_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model()
    trainer, _ = make_trainer(tmp_path, model, label_smoothing_factor=0.1)
    with pytest.raises(UsageError, match="label_smoothing_factor"):
        trainer.train()
    assert "forward" not in model.__dict__


def test_rows_that_cannot_be_cut_into_patches_are_refused(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, tiny_model())
    trainer.train_dataset = Rows(some_rows(ROWS * STEPS)[:, :-1])
    with pytest.raises(UsageError, match="must be a multiple"):
        trainer.train()


def _one_of_two(folder: Path) -> None:
    run, _ = make_trainer(
        folder, tiny_model(), eval_strategy="steps", per_device_train_batch_size=ROWS // 4,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    run.train()
    run.save_model()
    run.save_state()
    run.accelerator.end_training()


def test_two_processes_equal_a_loop_written_out(tmp_path: Path) -> None:
    call(2, _one_of_two, tmp_path / "two")
    reference = tiny_model()
    losses, held_out = by_hand(reference)
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    assert [row["loss"] for row in state["log_history"] if "loss" in row] == pytest.approx(
        losses, abs=1e-4
    )
    evaluated = [row["eval_loss"] for row in state["log_history"] if "eval_loss" in row]
    assert evaluated[: STEPS - 1] == pytest.approx(held_out[1:], abs=1e-4)
    same_weights(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two"), reference)
