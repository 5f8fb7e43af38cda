"""The mean of a stage's last weights: exact, in fp32, kept in checkpoints, undone by a rollback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from patchtrain import PatchtrainError
from patchtrain.training.averaging import WeightMean
from tests.models import tiny_model
from tests.training.test_guard import spoil
from tests.training.test_resuming import equal, weights
from tests.training.test_trainer import trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_mean_of_many_weights_in_fp32(dtype: torch.dtype) -> None:
    model, mean = tiny_model(tie_word_embeddings=True).to(dtype), WeightMean()
    generator, seen = torch.Generator().manual_seed(0), []
    for count in range(1, 51):
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.01 * torch.randn(weight.shape, generator=generator).to(dtype)
        seen.append([weight.detach().double().clone() for weight in model.parameters()])
        mean.add(model)
        assert mean.count == count
    mean.move_to(model)
    assert mean.count == 0
    for at, weight in enumerate(model.parameters()):
        expected = torch.stack([each[at] for each in seen]).mean(0).to(dtype)
        # In bf16 it may lie just on the other side of a rounding, half of 2^-7 of it.
        close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
        torch.testing.assert_close(weight, expected, rtol=close, atol=close * 1e-3)
    before = [weight.clone() for weight in model.parameters()]
    mean.move_to(model)  # of nothing
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_mean_comes_back_from_a_checkpoint_and_only_to_its_own_model(tmp_path: Path) -> None:
    model, mean, again = tiny_model(), WeightMean(), WeightMean()
    for seed in range(3):
        model.load_state_dict(tiny_model(seed=seed).state_dict())
        mean.add(model)
    mean.write(tmp_path)
    again.read(model, tmp_path, 3)
    for each in (mean, again):
        each.add(model)
    first, second = tiny_model(), tiny_model()
    mean.move_to(first)
    again.move_to(second)
    assert equal(first.state_dict(), second.state_dict())
    with pytest.raises(PatchtrainError, match=r"average is not of this model's weights: lm_head"):
        again.read(tiny_model(hidden_size=16), tmp_path, 3)
    with pytest.raises(PatchtrainError, match="is not of this model's weights"):
        again.read(model, tmp_path / "nothing", 3)


def test_only_checkpoints_within_the_mean_hold_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan={"average_at_switch": 0.5}, save_steps=1, save_total_limit=99)
    run.train()
    held = [step for step in range(1, 11) if (tmp_path / f"checkpoint-{step}/average").exists()]
    assert held == [3, 4]  # at 4 the stage is done and the switch is not


def test_behind_the_switch_a_rollback_goes_on_with_the_mean_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    plan = {"average_at_switch": 0.75, "optimizer_at_switch": "carry"}
    run = trainer(tmp_path, plan=plan, on_nonfinite="rollback", save_steps=3)
    after: dict[int, dict[str, torch.Tensor]] = {}
    switched = []
    switch = run.switch

    class Noting(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            after[state.global_step] = weights(run)

    def noted() -> None:
        switch()
        switched.append(weights(run))

    run.switch = noted
    run.add_callback(Noting())
    spoil(run, 5)
    run.train()
    seen = [(2, 3, 4), (2, 3)]  # at the switch, and at what had been seen at checkpoint-3
    for got, steps in zip(switched, seen, strict=True):
        for name, weight in got.items():
            expected = torch.stack([after[step][name] for step in steps]).mean(0)
            torch.testing.assert_close(weight, expected)
