"""What must be equal when a run is resumed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import Plan, PlanSpec, UsageError
from patchtrain.patch_settings import STAGE_UNUSED, UNUSED
from patchtrain.training.identity import (
    MAY_CHANGE,
    _plan_identity,
    data_identity,
    refuse_changes,
)

RUN: dict[str, Any] = {
    "store": "a", "tokenizer": "b", "plan": {"steps": 10, "stage 1": {"patch_size": 2}},
    "model": {"hidden_size": 32}, "seed": {"seed": 0}, "optimizer": {"optim": "adamw"},
    "learning_rate": 1e-3, "logging": {"logging_steps": 10}, "processes": 1,
}  # fmt: skip


def test_the_same_run_goes_on() -> None:
    refuse_changes(RUN, RUN, [], "checkpoint-1")


@given(st.sampled_from(sorted(RUN)), st.sets(st.sampled_from(sorted(MAY_CHANGE))))
def test_a_change_is_refused_unless_it_is_allowed(key: str, allowed: set[str]) -> None:
    value = RUN[key]
    other = {**value, next(iter(value)): "other"} if isinstance(value, dict) else "other"
    changed = {**RUN, key: other}
    if key in allowed:
        refuse_changes(RUN, changed, allowed, "checkpoint-1")
        return
    with pytest.raises(UsageError, match=f"checkpoint-1 was made by another run: {key}"):
        refuse_changes(RUN, changed, allowed, "checkpoint-1")


def test_a_config_key_that_only_one_version_knows_is_no_difference() -> None:
    refuse_changes(RUN, {**RUN, "model": {"hidden_size": 32, "new": 1}}, [], "checkpoint-1")
    with pytest.raises(UsageError, match=r"plan\.new is 1 and was None"):
        refuse_changes(RUN, {**RUN, "plan": {**RUN["plan"], "new": 1}}, [], "checkpoint-1")


@pytest.mark.parametrize("length", [10, 5_000_000])
def test_other_tokens_have_another_digest(length: int) -> None:
    tokens = np.zeros(length, dtype=np.uint16)
    same, other = tokens.copy(), tokens.copy()
    other[0] = 1
    first = data_identity(tokens, tokens)
    assert first == data_identity(same, same)
    assert first != data_identity(other, other)
    assert first != data_identity(tokens[:-1], tokens[:-1])


def plan(**values: Any) -> Plan:
    spec = {
        "preset": "paper",
        "context_length": 8,
        "tokens_per_step": 64,
        "steps": 40,
        "patch_size": 4,
        **values,
    }
    return PlanSpec.from_dict(spec).resolve()


USED: list[dict[str, Any]] = [
    {"embedding_scale": "sqrt"},
    {"optimizer_at_switch": "second"},
    {"pool_weights": "recent"},
    {"patch_rate": 2.0},
    {"rewarm_steps": 2},
    {"phase": "random"},
    {"token_share": 0.25},
    {"position_scale": "patch"},
    {"average_at_switch": 0.5},
    {"hybrid_share": 0.5, "hold": "compute"},
    {"freeze_head_steps": 2},
    {"freeze_body_steps": 2},
    {"head_scale_at_switch": 2.0},
    {"pool_order": "rotate"},
]


def test_a_setting_that_is_not_used_is_no_part_of_a_run() -> None:
    unused = _plan_identity(plan())
    assert not UNUSED.keys() & unused.keys()
    assert not STAGE_UNUSED.keys() & unused["stage 1"].keys()
    assert _plan_identity(plan(**UNUSED)) == unused


@pytest.mark.parametrize("values", USED)
def test_a_setting_that_is_used_is_part_of_the_run(values: dict[str, Any]) -> None:
    used, unused = ({**RUN, "plan": _plan_identity(plan(**each))} for each in (values, {}))
    refuse_changes(used, {**RUN, "plan": _plan_identity(plan(**values))}, [], "checkpoint-1")
    for before, now in ((unused, used), (used, unused)):
        with pytest.raises(UsageError, match="checkpoint-1 was made by another run: plan"):
            refuse_changes(before, now, [], "checkpoint-1")
