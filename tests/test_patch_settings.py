"""Settings of a plan beyond the papers: each against a slow reference, and nothing by default."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from patchtrain import Plan, PlanSpec, UsageError, patch_level, patch_loss_reference, patch_targets
from patchtrain.data.batches import PlanBatches
from patchtrain.patch_settings import STAGE_UNUSED, UNUSED, embedding_scale, pool_weights
from patchtrain.patches import embed_patches
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
        ({"position_scale": "4"}, "position_scale '4' is not one of none, patch"),
        ({"position_scale": "patch", "documents": "separate"}, "position_scale patch needs doc"),
        ({"token_share": 1}, "token_share must be at least 0 and below 1, not 1"),
        ({"token_share": None}, "token_share must be at least 0 and below 1, not None"),
        ({"embedding_scale": None}, "embedding_scale is .* not None"),
        ({"pool_weights": "last"}, "pool_weights is uniform, recent or a list .* not 'last'"),
        ({"pool_weights": [0, 0, 0, 0]}, "pool_weights is .* not all 0, not "),
        ({"pool_weights": [1, -1, 1, 1]}, "pool_weights is .* not "),
        ({"pool_weights": None}, "pool_weights is .* not None"),
        ({"patch_rate": 0}, "patch_rate must be above 0 and at most 1,024, not 0"),
        ({"patch_rate": "2x"}, "patch_rate must be above 0 .* not '2x'"),
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


# ---- pool_weights


def test_the_weights_of_a_patchs_embeddings() -> None:
    assert pool_weights("recent", 2) == pytest.approx((2 / 3, 4 / 3))
    assert pool_weights("recent", 4) == pytest.approx(tuple(4 * w / 15 for w in (1, 2, 4, 8)))
    assert pool_weights([0, 1], 2) == (0.0, 2.0)
    assert pool_weights([0, 1], 4) is None  # a list is for the stages of its own length
    assert pool_weights("recent", 4, "output-only") is None
    assert pool_weights("recent", 1) is None
    weights = [stage.pool_weights for stage in plan(pool_weights=[1, 1, 1, 5]).stages]
    assert weights == [(0.5, 0.5, 0.5, 2.5), None]


@given(st.integers(1, 1024))
def test_recent_weights_have_a_mean_of_one(patch_size: int) -> None:
    weights = pool_weights("recent", patch_size)
    assert (weights is None) == (patch_size == 1)
    if weights is not None:
        assert sum(weights) / patch_size == pytest.approx(1.0)
        assert all(second >= first for first, second in pairwise(weights))


@pytest.mark.parametrize("plain", [True, False])
def test_a_weighted_mean_by_hand_with_its_gradient(plain: bool) -> None:
    """Looked up and weighed in one go, and pooled: both as the sum written out."""
    weights = (0.4, 0.8, 1.2, 1.6)
    embedding = torch.nn.Embedding(VOCAB, 6)
    if not plain:
        embedding.register_forward_hook(lambda module, args, output: None)
    ids = some_ids(4)
    got = embed_patches(embedding, ids, 4, weights)
    table = embedding.weight.detach().double().requires_grad_()
    slots = table[ids].view(2, T, 4, 6)
    expected = sum(weights[slot] * slots[:, :, slot] for slot in range(4)) / 4
    torch.testing.assert_close(got.double(), expected)
    direction = torch.randn(expected.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((expected * direction).sum(), table)
    (got.double() * direction).sum().backward()
    torch.testing.assert_close(embedding.weight.grad.double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [(0.4, 0.8, 1.2, 1.6), (1.0, 1.0, 1.0, 1.0)])
def test_a_patch_of_identical_tokens_is_that_token_whatever_the_weights(
    weights: tuple[float, ...],
) -> None:
    embedding = torch.nn.Embedding(VOCAB, 6)
    ids = some_ids(1)
    pooled = embed_patches(embedding, ids.repeat_interleave(4, dim=1), 4, weights)
    torch.testing.assert_close(pooled, embedding(ids))


def test_the_model_reads_the_weighted_mean() -> None:
    model, ids = tiny_model(), some_ids(2)
    with patch_level(model, 2, pool_weights=(0.5, 1.5)):
        got = model(input_ids=ids, labels=ids).loss
    embeddings = model.get_input_embeddings()(ids)
    logits = model(inputs_embeds=0.25 * embeddings[:, 0::2] + 0.75 * embeddings[:, 1::2]).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 2), (1.0, 1.0))
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


# ---- patch_rate


@pytest.mark.parametrize("scope", ["run", "stage"])
def test_patches_have_their_share_of_the_rate(scope: str) -> None:
    values = {"stages": [[4, 0.3], [2, 0.3], [1, 0.4]], "patch_fraction": None}
    plain = plan(**values, schedule="wsd", schedule_scope=scope, rewarm_steps=3)
    scaled = plan(**values, schedule="wsd", schedule_scope=scope, rewarm_steps=3, patch_rate=2.0)
    for step in range(41):
        factor = 2.0 if step < 24 else 1.0
        assert scaled.rate_at(step) == factor * plain.rate_at(step)


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


# ---- position_scale


def test_positions_are_as_far_apart_as_their_tokens() -> None:
    made = plan(position_scale="patch")
    assert [stage.position_scale for stage in made.stages] == [4, 1]
    assert [stage.last_position for stage in made.stages] == [28, 7]
    assert made.spec.longest_context() == 4 * T  # what a model made from scratch has
    assert plan().spec.longest_context() == T
    ablated = {"patch_size": 4, "share": 1.0, "ablation": "output-only"}
    listed = plan(position_scale="patch", patch_fraction=None, stages=[ablated])
    assert listed.stages[0].position_scale == 1  # reads single tokens


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scaled_positions_change_distances_and_not_what_is_seen(
    family: str, attention: str
) -> None:
    model, ids = tiny_model(family, attn_implementation=attention), some_ids(4)
    with torch.no_grad():  # so that distances matter
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight *= 20
    with patch_level(model, 4, position_scale=4):
        got = model(input_ids=ids, labels=ids).loss
    with patch_level(model, 4):
        unscaled = model(input_ids=ids, labels=ids).loss
    patches = model.get_input_embeddings()(ids).view(2, T, 4, -1).mean(2)
    unseen = torch.full((1, 1, T, T), -torch.inf).triu(1)
    positions = 4 * torch.arange(T)[None]
    logits = model(inputs_embeds=patches, position_ids=positions, attention_mask=unseen).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4), (1.0,) * 4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    assert abs(got.item() - unscaled.item()) > 1e-5


def test_a_position_scale_of_one_changes_no_bit() -> None:
    model, ids = tiny_model(), some_ids(4)
    losses = []
    for settings in ({}, {"position_scale": 1}):
        with patch_level(model, 4, **settings):
            losses.append(model(input_ids=ids, labels=ids).loss)
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("gpt2", "depend on where a row begins, as learned positions make them"),
        ("bloom", "its forward takes no position_ids"),
    ],
)
def test_positions_that_are_not_rotary_are_refused(family: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be trained with position_scale: .*{why}"):
        patch_level(tiny_model(family), 4, position_scale=4)


def test_positions_beyond_the_models_are_refused() -> None:
    model = tiny_model(max_position_embeddings=29)
    for more, patches in ((0, T), (1, T + 1)):
        ids = torch.zeros(1, 4 * patches, dtype=torch.long)
        with patch_level(model, 4, position_scale=4):
            if more:
                with pytest.raises(UsageError, match=r"positions up to 32, beyond .* of 29"):
                    model(input_ids=ids, labels=ids)
            else:
                model(input_ids=ids, labels=ids)


def test_with_a_position_scale_positions_are_not_the_callers() -> None:
    model, ids = tiny_model(), some_ids(4)
    positions = torch.arange(4 * T).expand(2, -1)
    with patch_level(model, 4, position_scale=4), pytest.raises(UsageError, match="leave them out"):
        model(input_ids=ids, labels=ids, position_ids=positions)


# ---- token_share


@pytest.mark.parametrize("hold", ["tokens", "compute"])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_steps_at_token_level_are_spread_evenly_and_counted(hold: str, share: float) -> None:
    made = plan(hold=hold, token_share=share, tokens_per_step=32 * T, step_fraction=0.5,
                patch_fraction=None)  # fmt: skip
    patched, last = made.stages
    levels = [made.stage_at(step).level_at(step).patch_size for step in range(40)]
    assert levels[:20].count(1) == patched.token_steps == int(20 * share)
    assert levels[20:] == [1] * 20
    assert last.token_steps == 0
    at = [step for step in range(20) if levels[step] == 1]
    assert {b - a for a, b in pairwise(at)} <= {math.floor(1 / share), math.ceil(1 / share)}
    tokens = 0
    for step in range(40):
        assert made.tokens_before(step) == tokens
        level = made.stage_at(step).level_at(step)
        assert level.positions_per_step == made.stage_at(step).positions_per_step
        tokens += level.positions_per_step * level.patch_size
    assert made.total_tokens == tokens == sum(stage.tokens for stage in made.stages)


@pytest.mark.parametrize("hold", ["tokens", "compute"])
def test_shares_of_the_tokens_are_of_those_that_are_read(hold: str) -> None:
    made = plan(hold=hold, token_share=0.25, tokens_per_step=32 * T, steps=None, tokens=400_000)
    assert made.total_tokens == pytest.approx(400_000, rel=0.01)
    assert made.stages[0].tokens == pytest.approx(200_000, rel=0.02)


def test_a_step_at_token_level_reads_the_beginning_of_its_sequences() -> None:
    without, shared = rows(), rows(token_share=0.25, patch_fraction=None, step_fraction=19 / 24)
    assert [stage.steps for stage in without.plan.stages] == [19, 5]
    assert [stage.steps for stage in shared.plan.stages] == [19, 5]
    for step in range(24):
        singles = shared.plan.stage_at(step).level_at(step).patch_size == 1
        expected = without.step(step)
        assert np.array_equal(shared.step(step), expected[:, :T] if singles else expected)
