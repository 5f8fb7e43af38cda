"""What becomes of the optimizer's state at a switch, and which optimizers can do it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from patchtrain import UsageError
from patchtrain.training.switching import switch_optimizer
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
    }
    whole = trainer(tmp_path, plan=plan, save_steps=step, save_total_limit=9)
    whole.train()
    resumed = trainer(tmp_path, plan=plan, save_steps=step, save_total_limit=9)
    resumed.train(str(tmp_path / f"checkpoint-{step}"))
    assert equal(weights(whole), weights(resumed))
