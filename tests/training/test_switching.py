"""What becomes of the optimizer's state at a switch, and which optimizers can do it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from patchtrain import UsageError
from patchtrain.training.switching import scale_head, switch_optimizer
from tests.models import tiny_model
from tests.training.test_resuming import equal, weights
from tests.training.test_trainer import trainer


def after_a_step(kind: type[torch.optim.Optimizer], **settings: bool) -> torch.optim.Optimizer:
    layer = nn.Linear(3, 2)
    optimizer = kind(layer.parameters(), lr=0.1, **settings)
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    return optimizer


def test_second_keeps_all_but_the_first_moment() -> None:
    optimizer = after_a_step(torch.optim.AdamW, amsgrad=True)
    before = {
        weight: {name: value.clone() for name, value in state.items()}
        for weight, state in optimizer.state.items()
    }
    switch_optimizer(optimizer, "second")
    assert len(optimizer.state) == 2
    for weight, state in optimizer.state.items():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert bool(before[weight]["exp_avg"].any())
        assert not bool(state.pop("exp_avg").any())
        assert all(torch.equal(value, before[weight][name]) for name, value in state.items())


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
def test_an_optimizer_without_second_moments_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    optimizer = after_a_step(kind)
    switch_optimizer(optimizer, "carry")
    with pytest.raises(UsageError, match=f"AdamW's second moments, and {kind.__name__} has"):
        switch_optimizer(optimizer, "second")


def test_it_is_refused_after_the_first_step_and_not_at_the_switch(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan={"optimizer_at_switch": "second"}, optim="adagrad")
    with pytest.raises(UsageError, match="second moments, and Adagrad has only"):
        run.train()
    assert run.state.global_step == 1


@pytest.mark.parametrize("step", [3, 4, 5])  # before the switch, at it and after it
def test_a_resumed_run_switches_as_one_that_was_not_stopped(tmp_path: Path, step: int) -> None:
    plan = {
        "optimizer_at_switch": "second",
        "embedding_scale": "sqrt",
        "rewarm_steps": 3,
        "phase": "random",
        "position_scale": "patch",
        "token_share": 0.25,
        "freeze_head_steps": 2,
        "head_scale_at_switch": 0.5,
        "pool_order": "rotate",
        "average_at_switch": 0.75,
    }
    whole = trainer(tmp_path, plan=plan, save_steps=step, save_total_limit=9)
    whole.train()
    resumed = trainer(tmp_path, plan=plan, save_steps=step, save_total_limit=9)
    resumed.train(str(tmp_path / f"checkpoint-{step}"))
    assert equal(weights(whole), weights(resumed))


# ---- the head


@pytest.mark.parametrize("family", ["llama", "phi", "gemma2"])  # plain, with a bias, capped
def test_a_scaled_head_gives_scaled_logits(family: str) -> None:
    model, ids = tiny_model(family, tie_word_embeddings=False).eval(), torch.arange(8)[None]
    before = model(ids).logits
    scale_head(model, 2.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    expected = 2 * before if cap is None else cap * torch.tanh(2 * torch.atanh(before / cap))
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_tied_head_cannot_be_scaled(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    with pytest.raises(UsageError, match="head_scale_at_switch needs a head of its own, and that "):
        trainer(tmp_path, model, plan={"head_scale_at_switch": 2.0})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("part", ["head", "body"])
def test_what_is_frozen_after_a_switch_changes_no_bit(
    tmp_path: Path, part: str, tied: bool
) -> None:
    """Neither by a gradient nor by weight decay, and as the body adapts so does the norm."""
    plan = {f"freeze_{part}_steps": 3, "optimizer_at_switch": "carry"}
    run = trainer(tmp_path, tiny_model(tie_word_embeddings=tied), plan=plan, eval_strategy="no")
    ends = {"lm_head.weight", "model.embed_tokens.weight"}
    head = ends if tied else {"lm_head.weight"}
    kept: dict[int, dict[str, torch.Tensor]] = {}

    class Keeping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kept[state.global_step] = weights(run)

    run.add_callback(Keeping())
    run.train()
    frozen = head if part == "head" else kept[4].keys() - ends
    for step in range(1, 10):  # the switch is after step 4
        for name in kept[4]:
            same = torch.equal(kept[step][name], kept[step + 1][name])
            assert same == (4 <= step < 7 and name in frozen), (step, name)
