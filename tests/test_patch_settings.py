"""Settings of a plan beyond the papers: each against a slow reference, and nothing by default."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchtrain import Plan, PlanSpec, UsageError, patch_level, patch_loss_reference, patch_targets
from patchtrain.data.batches import PlanBatches
from patchtrain.patch_settings import STAGE_UNUSED, UNUSED, embedding_scale
from patchtrain.stage import Stage
from tests.models import VOCAB, tiny_model

T = 8


def plan(**values: Any) -> Plan:
    spec = {"context_length": T, "tokens_per_step": 8 * T, "steps": 40, "patch_size": 4, **values}
    return PlanSpec.from_dict({"patch_fraction": 0.5, **spec}).resolve()


def some_ids(patch_size: int, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCAB, (rows, patch_size * T), generator=generator)


def test_unused_is_the_default_of_plans_and_stages() -> None:
    spec = PlanSpec(context_length=8, tokens_per_step=64)
    assert {name: getattr(spec, name) for name in UNUSED} == UNUSED
    defaults = {name: Stage.__dataclass_fields__[name].default for name in STAGE_UNUSED}
    assert defaults == STAGE_UNUSED
    for stage in plan().stages:
        assert {name: getattr(stage, name) for name in STAGE_UNUSED} == STAGE_UNUSED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embedding_scale": "root"}, "embedding_scale is none, sqrt or a number .* not 'root'"),
        ({"embedding_scale": 0}, "embedding_scale is none, sqrt or a number above 0 .* not 0"),
        ({"embedding_scale": float("nan")}, "embedding_scale is .* not nan"),
        ({"embedding_scale": True}, "embedding_scale is .* not True"),
        ({"rewarm_steps": -1}, "rewarm_steps must be a whole number of at least 0, not -1"),
        ({"rewarm_steps": 1.5}, "rewarm_steps must be a whole number of at least 0, not 1.5"),
        ({"rewarm_steps": None}, "rewarm_steps must be a whole number"),
        ({"rewarm_steps": 20}, "rewarm_steps 20 leaves none of the 20 steps of tokens"),
        ({"phase": "shifted"}, "phase 'shifted' is not one of fixed, random"),
        ({"phase": "random", "documents": "separate"}, "phase random needs documents: mixed"),
        (
            {
                "phase": "random",
                "patch_fraction": None,
                "stages": [{"patch_size": 4, "share": 1.0, "ablation": "mixup"}],
            },
            "ablation mixup needs phase: fixed",
        ),
        ({"embedding_scale": None}, "embedding_scale is .* not None"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**values)


# ---- embedding_scale


def test_the_scale_of_a_patch() -> None:
    assert [stage.embedding_scale for stage in plan(embedding_scale="sqrt").stages] == [2.0, 1.0]
    assert [stage.embedding_scale for stage in plan(embedding_scale=3).stages] == [3.0, 1.0]
    assert embedding_scale("sqrt", 4, "output-only") == 1.0  # reads single tokens
    assert embedding_scale("sqrt", 4, "mixup") == 2.0


@pytest.mark.parametrize("backend", ["chunked", "plain"])
def test_a_scaled_patch_is_the_scaled_mean_of_its_embeddings(backend: str) -> None:
    model, ids = tiny_model(), some_ids(4)
    with patch_level(model, 4, backend=backend, embedding_scale=2.0):
        got = model(input_ids=ids, labels=ids).loss
    embeddings = model.get_input_embeddings()(ids)
    patches = torch.stack([embeddings[:, slot::4] for slot in range(4)]).sum(0) / 2
    logits = model(inputs_embeds=patches).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4), (1.0,) * 4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_sqrt_gives_a_patch_the_norm_of_a_token() -> None:
    embeddings = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    patches = embeddings.view(250, 4, 64).mean(1) * embedding_scale("sqrt", 4)
    ratio = patches.norm(dim=-1).mean() / embeddings.norm(dim=-1).mean()
    assert float(ratio) == pytest.approx(1.0, abs=0.03)


def test_a_scale_of_one_and_patches_of_one_change_no_bit() -> None:
    model = tiny_model()
    for patch_size, scale in ((4, 1.0), (1, 2.0)):
        ids = some_ids(patch_size)
        losses = []
        for settings in ({}, {"embedding_scale": scale}):
            with patch_level(model, patch_size, **settings):
                losses.append(model(input_ids=ids, labels=ids).loss)
        assert torch.equal(*losses)


# ---- rewarm_steps


@pytest.mark.parametrize("scope", ["run", "stage"])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_after_a_switch_the_rate_rises_from_nothing(scope: str, schedule: str) -> None:
    values = {
        "stages": [[4, 0.3], [2, 0.3], [1, 0.4]],
        "patch_fraction": None,
        "schedule": schedule,
        "schedule_scope": scope,
        "warmup_steps": 2,
    }
    without, ramped = plan(**values), plan(**values, rewarm_steps=4)
    expected = [without.rate_at(step) for step in range(41)]
    for switch in (12, 24):
        for into in range(4):
            expected[switch + into] *= [0.25, 0.5, 0.75, 1.0][into]
    got = {step: ramped.rate_at(step) for step in reversed(range(41))}  # in no order
    assert [got[step] for step in range(41)] == expected
    assert [stage.first_step for stage in ramped.stages] == [0, 12, 24]


@pytest.mark.parametrize("rewarm_steps", [0, 1])
def test_no_ramp_changes_no_bit_of_the_rate(rewarm_steps: int) -> None:
    without, ramped = plan(), plan(rewarm_steps=rewarm_steps)
    assert all(without.rate_at(step) == ramped.rate_at(step) for step in range(41))


# ---- phase


def rows(seed: int = 3, processes: int = 1, tokens: int = 4096, **values: Any) -> PlanBatches:
    """Batches over tokens that say where they are; the run reads them one and a half times."""
    spec = {"context_length": T, "tokens_per_step": 32 * T, "patch_size": 4, "steps": 24}
    spec |= {"patch_fraction": 0.8, "max_epochs": 9, **values}
    made = PlanSpec.from_dict(spec).resolve(store_tokens=tokens, processes=processes)
    return PlanBatches(np.arange(tokens, dtype=np.uint32), made, seed)


def test_random_phases_move_each_row_by_less_than_a_patch() -> None:
    fixed, random = rows(), rows(phase="random")
    patched = fixed.plan.stages[0].last_step
    moves = []
    for step in range(len(fixed)):
        before, after = fixed.step(step), random.step(step)
        assert before.shape == after.shape
        assert (np.diff(after, axis=1) == 1).all()
        move = after[:, 0] - before[:, 0]
        if step >= patched:
            assert np.array_equal(before, after)
            continue
        at_end = before[:, -1] + 3 >= 4096
        assert (after <= 4095).all()
        assert (move[at_end] == 0).all()  # the last row has no room
        moves += list(move[~at_end])
    assert set(moves) == {0, 1, 2, 3}
    counts = np.bincount(moves)
    assert counts.min() > 0.8 * counts.max()


def test_a_phase_is_a_function_of_seed_and_sequence() -> None:
    first, again, other = rows(phase="random"), rows(phase="random"), rows(5, phase="random")
    shared = rows(phase="random", processes=2)
    for step in reversed(range(19)):
        assert np.array_equal(first.step(step), again.step(step))
        parts = [shared.step(step, process) for process in (0, 1)]
        assert np.array_equal(first.step(step), np.concatenate(parts))
    assert (first.step(0) % 4 != other.step(0) % 4).any()
    stage, index = first.plan.stages[0], np.arange(128)
    twice = [first.phases(stage, index + more, np.zeros(128, dtype=int)) for more in (0, 16)]
    assert not np.array_equal(*twice)
