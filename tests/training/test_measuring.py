"""Times of a plan's stages: what each pass is timed at, and what a step's mean is made of."""

from typing import Any

import pytest
import torch
from torch import Tensor

from patchtrain.modeling import PatchLevel
from patchtrain.plan import Plan, PlanSpec
from patchtrain.stage import Stage
from patchtrain.training import measuring
from patchtrain.training.measuring import random_rows, step_seconds
from tests.models import VOCAB, tiny_model

UPDATE = 1000.0


def plan(**values: Any) -> Plan:
    settings = {"context_length": 8, "tokens_per_step": 64, "steps": 20, "patch_size": 4,
                "step_fraction": 0.5, "preset": "superposition"}  # fmt: skip
    return PlanSpec(**{**settings, **values}).resolve(device_sequences=2)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Each work is done once and takes as long as it is large; which patch level it was done at."""
    seen: list[tuple[int, float, int]] = []

    def once(work: Any) -> float:
        if not hasattr(work, "args"):
            return UPDATE
        model, inputs, _ = work.args
        level = getattr(model.forward, "patch_level", None)
        assert level is None or isinstance(level, PatchLevel)
        scales = (level.embedding_scale, level.position_scale) if level else (1.0, 1)
        seen.append((level.patch_size if level else 1, *scales))
        work()
        return float(inputs["input_ids"].shape[1])

    monkeypatch.setattr(measuring, "_timed", once)
    return seen


def seconds(found: Plan) -> tuple[float, ...]:
    model = tiny_model(max_position_embeddings=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = random_rows(found, VOCAB)

    def checked(stage: Stage, step: int) -> dict[str, Tensor]:
        assert found.stage_at(step).level_at(step) == stage
        return rows(stage, step)

    return step_seconds(model, found, optimizer, checked, torch.device("cpu"))


def test_a_step_takes_its_passes_and_one_update(timed: list[Any]) -> None:
    found = plan()
    passes = found.passes(found.stages[0])
    assert seconds(found) == (passes * 32 + UPDATE, passes * 8 + UPDATE)
    assert timed == [(4, 1.0, 1), (1, 1.0, 1)]


def test_passes_are_timed_with_the_settings_of_the_plan(timed: list[Any]) -> None:
    seconds(plan(embedding_scale="sqrt", position_scale="patch"))
    assert timed == [(4, 2.0, 4), (1, 1.0, 1)]


def test_steps_at_token_level_are_part_of_a_stages_mean(timed: list[Any]) -> None:
    found = plan(token_share=0.3)
    assert found.stages[0].steps == 10
    assert found.stages[0].token_steps == 3
    passes = found.passes(found.stages[0])
    mean = passes * (0.7 * 32 + 0.3 * 8)
    assert seconds(found) == pytest.approx((mean + UPDATE, passes * 8 + UPDATE))
    assert timed == [(4, 1.0, 1), (1, 1.0, 1)]  # the second stage's is the same
