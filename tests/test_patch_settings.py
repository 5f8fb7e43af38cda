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
from patchtrain.patch_settings import STAGE_UNUSED, UNUSED, embedding_scale, pool_weights, tail
from patchtrain.patches import IGNORE, embed_patches, hybrid_targets, pool_embeddings, rotated
from patchtrain.sizing import model_size
from patchtrain.stage import Stage, last_position, span
from tests.models import VOCAB, tiny_model

T = 8


def plan(**values: Any) -> Plan:
    spec = {
        "preset": "paper",
        "context_length": T,
        "tokens_per_step": 8 * T,
        "steps": 40,
        "patch_size": 4,
        **values,
    }
    return PlanSpec.from_dict({"patch_fraction": 0.5, **spec}).resolve()


def some_ids(patch_size: int, rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCAB, (rows, patch_size * T), generator=generator)


def test_unused_is_the_default_of_plans_and_stages() -> None:
    spec = PlanSpec(context_length=8, tokens_per_step=64, patch_size=4).filled()
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
        ({"hybrid_share": 1}, "hybrid_share must be at least 0 and below 1, not 1"),
        ({"hybrid_share": "half"}, "hybrid_share must be at least 0 and below 1, not 'half'"),
        ({"hybrid_share": 0.5, "documents": "separate"}, "hybrid_share needs documents: mixed"),
        (
            {
                "hybrid_share": 0.5,
                "patch_fraction": None,
                "stages": [{"patch_size": 4, "share": 1.0, "ablation": "input-only"}],
            },
            "ablation input-only needs hybrid_share: 0",
        ),
        (
            {"hybrid_share": 0.5},
            r"64 is not a multiple of 160 \(hybrid sequences of 20 tokens and context_length 8 x",
        ),
        ({"freeze_head_steps": -1}, "freeze_head_steps must be a whole number .* not -1"),
        ({"freeze_body_steps": True}, "freeze_body_steps must be a whole number .* not True"),
        ({"freeze_head_steps": 20}, "freeze_head_steps 20 leaves none of the 20 steps of tokens"),
        ({"freeze_head_steps": 2, "freeze_body_steps": 1}, "leave nothing to train; give one"),
        ({"head_scale_at_switch": 0}, "head_scale_at_switch must be above 0 and at most 1,024"),
        ({"pool_order": "flip"}, "pool_order 'flip' is not one of none, rotate"),
        ({"average_at_switch": 1.1}, "average_at_switch must lie between 0 and 1, not 1.1"),
        ({"average_at_switch": True}, "average_at_switch must lie between 0 and 1, not True"),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 2.0}, r"patch_size must be a whole number of at least 1, not 2\.0"),
        ({"patch_size": "4"}, "patch_size must be a whole number of at least 1, not '4'"),
        ({"patch_size": True}, "patch_size must be a whole number of at least 1, not True"),
        ({"patch_size": 0}, "patch_size must be a whole number of at least 1, not 0"),
        ({"pool_order": "rotated"}, "pool_order is none or rotate, not 'rotated'"),
        ({"pool_order": None}, "pool_order is none or rotate, not None"),
        ({"pool_weights": [1.0, 1.0]}, "pool_weights has 2 numbers for a patch of 4 tokens"),
        ({"pool_weights": [3.0]}, "pool_weights has 1 numbers for a patch of 4 tokens"),
        ({"pool_weights": [1, -1, 1, 1]}, "pool_weights is .* not "),
        ({"pool_weights": "last"}, "pool_weights is .* not 'last'"),
        ({"embedding_scale": 0.0}, r"embedding_scale is .* not 0\.0"),
        ({"embedding_scale": math.nan}, "embedding_scale is .* not nan"),
        ({"position_scale": 0}, "position_scale is none, patch or a whole number .* not 0"),
        ({"position_scale": -3}, "position_scale is .* not -3"),
        ({"position_scale": 4.0}, r"position_scale is .* not 4\.0"),
        ({"position_scale": True}, "position_scale is .* not True"),
        ({"tail": -4}, "tail must be a whole number of at least 0, not -4"),
        ({"tail": 0.5}, r"tail must be a whole number of at least 0, not 0\.5"),
        ({"tail": 8, "ablation": "input-only"}, "ablation input-only needs a tail of 0, not 8"),
        ({"ablation": "input_only"}, "did you mean 'input-only'"),
        ({"ablation": 3}, "no ablation '3'"),
        ({"ablation": "mixup"}, "mixup is an order of the tokens.*not of the model"),
        ({"ablation": "shuffled"}, "shuffled is an order of the tokens.*not of the model"),
    ],
)
def test_patch_level_refuses_the_same_in_one_line(values: dict[str, Any], message: str) -> None:
    model = tiny_model()
    with pytest.raises(UsageError, match=message) as refused:
        patch_level(model, **{"patch_size": 4, **values})
    assert "\n" not in str(refused.value)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"pool_weights": [0.1, 0.2, 0.3, 0.4]}, {"pool_weights": (0.4, 0.8, 1.2, 1.6)}),
        ({"pool_weights": "recent"}, {"pool_weights": [1, 2, 4, 8]}),
        ({"pool_weights": "uniform"}, {}),
        ({"embedding_scale": "sqrt"}, {"embedding_scale": 2}),
        ({"embedding_scale": "none", "position_scale": "none"}, {}),
        ({"position_scale": "patch"}, {"position_scale": 4}),
    ],
)
def test_patch_level_takes_what_a_plan_takes(given: dict[str, Any], same: dict[str, Any]) -> None:
    model, ids, losses = tiny_model(), some_ids(4), []
    for values in (given, same):
        with patch_level(model, 4, **values):
            losses.append(model(input_ids=ids, labels=ids).loss)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    with patch_level(model, 1, **given):  # as a loop that ends with tokens calls it
        assert "forward" not in model.__dict__


def test_what_a_stage_says_patch_level_takes_as_it_is() -> None:
    """The numbers of a plan are not changed on their way to the model."""
    values = {"pool_weights": "recent", "embedding_scale": "sqrt", "position_scale": "patch",
              "pool_order": "rotate", "hybrid_share": 0.25, "tokens_per_step": 416}  # fmt: skip
    stage = plan(**values).stages[0]
    with patch_level(tiny_model(), 4, **stage.reading()) as handle:
        assert handle.pool_weights == pytest.approx(stage.pool_weights, rel=1e-12)
        for name in ("embedding_scale", "position_scale", "pool_order", "tail"):
            assert getattr(handle, name) == getattr(stage, name) != STAGE_UNUSED[name]


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


# ---- pool_order


@given(st.integers(2, 16), st.integers(1, 24))
def test_each_place_in_a_patch_has_a_permutation_of_its_own(patch_size: int, width: int) -> None:
    """As a matrix: orthogonal for every place, the identity for the last, and no two alike."""
    unit = torch.eye(width).unsqueeze(1).expand(-1, patch_size, -1)
    maps = rotated(unit).unbind(1)  # each (D, D): row d is where dimension d goes
    for matrix in maps:
        assert torch.equal(matrix @ matrix.T, torch.eye(width))
    assert torch.equal(maps[-1], torch.eye(width))
    if patch_size <= width:
        assert len({tuple(matrix.argmax(1).tolist()) for matrix in maps}) == patch_size


def test_two_places_and_four_dimensions_by_hand() -> None:
    patch = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert rotated(patch).tolist() == [[3, 4, 1, 2], [5, 6, 7, 8]]
    assert pool_embeddings(patch[None], 2, rotate=True).tolist() == [[[4, 5, 4, 5]]]


@pytest.mark.parametrize("weights", [None, (0.4, 0.8, 1.2, 1.6)])
def test_the_order_of_a_patchs_tokens_matters_then_and_only_then(weights: Any) -> None:
    model, ids = tiny_model(), some_ids(4)
    swapped = ids.view(2, T, 4)[..., [1, 0, 2, 3]].reshape(2, -1)
    labels = torch.arange(4 * T).remainder(VOCAB).expand(2, -1)  # the same for both
    losses = {}
    for order in ("none", "rotate"):
        with patch_level(model, 4, pool_order=order, pool_weights=weights):
            losses[order] = [model(input_ids=each, labels=labels).loss for each in (ids, swapped)]
    same = [torch.isclose(*pair, rtol=1e-6, atol=1e-7).item() for pair in losses.values()]
    assert same == [weights is None, False]


@pytest.mark.parametrize("backend", ["chunked", "plain"])
def test_the_model_reads_rolled_embeddings_and_gives_their_gradient(backend: str) -> None:
    model, ids = tiny_model(tie_word_embeddings=True), some_ids(4)
    with patch_level(model, 4, backend=backend, pool_order="rotate"):
        got = model(input_ids=ids, labels=ids).loss
    got.backward()
    weight = model.get_input_embeddings().weight
    gradient, weight.grad = weight.grad, None
    embeddings = model.get_input_embeddings()(ids)
    patches = torch.zeros(2, T, 32)
    for slot in range(4):
        for dimension in range(32):
            goes_to = (dimension + (3 - slot) * 8) % 32
            patches[..., goes_to] = patches[..., goes_to] + embeddings[:, slot::4, dimension] / 4
    logits = model(inputs_embeds=patches).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4), (1.0,) * 4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)
    expected.backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-6)


def test_where_single_tokens_are_read_there_is_no_order() -> None:
    assert [stage.pool_order for stage in plan(pool_order="rotate").stages] == ["rotate", "none"]
    shared = plan(pool_order="rotate", token_share=0.5)
    levels = [shared.stages[0].level_at(step) for step in range(shared.stages[0].steps)]
    assert {(level.patch_size, level.pool_order) for level in levels} == {
        (4, "rotate"),
        (1, "none"),
    }
    ablated = {"patch_size": 4, "share": 1.0, "ablation": "output-only"}
    listed = plan(pool_order="rotate", patch_fraction=None, stages=[ablated])
    assert listed.stages[0].pool_order == "none"


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
    spec = {
        "preset": "paper",
        "context_length": T,
        "tokens_per_step": 32 * T,
        "patch_size": 4,
        "steps": 24,
    }
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
    assert PlanSpec(8, 64, steps=9, position_scale="flip", patch_size=4).longest_context() == 8
    broken = PlanSpec(8, 64, steps=9, position_scale="patch", stages=[[0.5, 1.0]])
    assert broken.longest_context() is None  # resolve() says why


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 20))
def test_positions_of_a_sequence_counted_out(length: int, scale: int, tail: int) -> None:
    tail = min(tail, length)
    positions, place = [], 0
    for position in range(length):
        positions.append(place)
        place += 1 if position >= length - tail else scale
    assert last_position(length, scale, tail) == positions[-1]
    assert span(length, scale, tail) == place


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


# ---- hybrid_share


def test_targets_of_a_hybrid_row_by_hand() -> None:
    """Two patches of 3, then four tokens; then a tail that is shorter than a patch."""
    row = torch.arange(10, 20)[None]
    I = IGNORE  # noqa: E741
    assert hybrid_targets(row, 3, 4).tolist() == [
        [[13, 14, 15], [16, 17, 18], [17, I, I], [18, I, I], [19, I, I]]
    ]
    assert hybrid_targets(row[:, :8], 3, 2).tolist() == [[[13, 14, 15], [16, 17, I], [17, I, I]]]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9))
def test_every_position_predicts_what_follows_what_it_reads(
    patch_size: int, patches: int, tail: int
) -> None:
    length = patches * patch_size + tail
    targets = hybrid_targets(torch.arange(length)[None], patch_size, tail)[0]
    assert targets.shape == (patches + tail - 1, patch_size)
    for position, row in enumerate(targets.tolist()):
        patched = position < patches
        after = (
            patch_size * (position + 1)
            if patched
            else patch_size * patches + position - patches + 1
        )
        following = range(after, min(after + (patch_size if patched else 1), length))
        assert [target for target in row if target != IGNORE] == list(following)


TAILED = 4 * (T - 3) + 3  # tokens of a row whose last three positions read one each


@pytest.mark.parametrize("backend", ["chunked", "torch", "plain"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (1.6, 1.2, 0.8, 0.4)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_hybrid_pass_by_hand_with_all_gradients(
    backend: str, weights: tuple[float, ...], family: str
) -> None:
    """Patches and tokens in one row of the model; the loss target by target over all logits."""
    if family == "gemma2" and backend == "torch":
        pytest.skip("it has no softcapping")
    model, ids = tiny_model(family, attn_implementation="eager"), some_ids(4)[:, :TAILED]
    with patch_level(model, 4, weights, backend=backend, tail=3):
        got = model(input_ids=ids, labels=ids).loss
    got.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    embeddings = model.get_input_embeddings()(ids)
    patches = embeddings[:, :-3].view(2, T - 3, 4, -1).mean(2)
    logits = model(inputs_embeds=torch.cat([patches, embeddings[:, -3:]], 1)).logits.double()
    surprise = -logits.log_softmax(-1)
    total, count = torch.zeros((), dtype=torch.float64), 0.0
    for row in range(2):
        for position in range(T - 1):
            patched = position < T - 3
            after = 4 * (position + 1) if patched else TAILED - (T - 1 - position)
            for slot in range(4 if patched else 1):
                if after + slot < TAILED:
                    target = ids[row, after + slot]
                    total = total + weights[slot] * surprise[row, position, target]
                    count += weights[slot]
    torch.testing.assert_close(got.double(), total / count, rtol=1e-6, atol=1e-6)
    (total / count).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=2e-4, atol=1e-6, msg=name)


def test_without_a_tail_a_hybrid_row_is_patches_and_with_nothing_else_tokens() -> None:
    model, ids = tiny_model(), some_ids(4)
    losses = []
    for settings in ({}, {"tail": 0}):
        with patch_level(model, 4, **settings):
            losses.append(model(input_ids=ids, labels=ids).loss)
    assert torch.equal(*losses)
    with patch_level(model, 4, tail=4 * T):
        loss, logits = model(input_ids=ids, labels=ids).loss, model(input_ids=ids).logits
    plain = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close(logits, plain.logits)


def test_patches_of_identical_tokens_before_a_tail_are_a_row_of_tokens() -> None:
    """What the tail sees of its past is then what a token model would see."""
    model, ids = tiny_model(), some_ids(1)
    rows = torch.cat([ids[:, :5].repeat_interleave(4, dim=1), ids[:, 5:]], dim=1)
    expected = model(input_ids=ids).logits
    with patch_level(model, 4, tail=3):
        got = model(input_ids=rows).logits
    torch.testing.assert_close(got, expected)


def test_positions_of_a_tail_go_on_behind_the_patches() -> None:
    model, ids = tiny_model(), some_ids(4)[:, :TAILED]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight *= 20
    embeddings = model.get_input_embeddings()(ids)
    patches = embeddings[:, :-3].view(2, T - 3, 4, -1).mean(2)
    inputs = torch.cat([patches, embeddings[:, -3:]], 1)
    unseen = torch.full((1, 1, T, T), -torch.inf).triu(1)
    for scale, positions in ((1, range(T)), (4, [0, 4, 8, 12, 16, 20, 21, 22])):
        with patch_level(model, 4, tail=3, position_scale=scale):
            got = model(input_ids=ids).logits
        places = torch.tensor([*positions])[None]
        expected = model(inputs_embeds=inputs, position_ids=places, attention_mask=unseen).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_what_a_tail_cannot_have_is_refused() -> None:
    model, ids = tiny_model(), some_ids(4)
    with patch_level(model, 4, tail=4):
        with pytest.raises(UsageError, match="leave attention_mask and position_ids out"):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        with pytest.raises(UsageError, match="a row of 3 tokens is shorter than its tail, 4"):
            model(input_ids=ids[:, :3])
        with pytest.raises(UsageError, match="cannot be cut into patches of 4"):
            model(input_ids=ids[:, :-1])


@pytest.mark.parametrize(
    ("share", "context_length", "expected"),
    [(0.0, 8, 0), (0.3, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.25, 512, 128), (0.1, 512, 64),
     (0.001, 512, 32), (0.999, 512, 480), (0.5, 7, 4)],
)  # fmt: skip
def test_the_length_of_a_tail(share: float, context_length: int, expected: int) -> None:
    assert tail(share, 4, context_length) == expected
    assert tail(share, 1, context_length) == 0


@pytest.mark.parametrize("settings", [
    {"hold": "compute"}, {"hold": "tokens"}, {"hold": "compute", "token_share": 0.25},
    {"hold": "compute", "position_scale": "patch"},
])  # fmt: skip
def test_tokens_of_hybrid_sequences_are_counted(settings: dict[str, Any]) -> None:
    made = plan(hybrid_share=0.5, tokens_per_step=160, **settings)
    patched, last = made.stages
    assert (patched.tail, last.tail) == (4, 0)
    assert patched.sequence_tokens == 4 * 4 + 4
    assert patched.last_position == (4 * 4 + 3 if "position_scale" in settings else 7)
    assert patched.name == "patches of 4 and 4 tokens"
    held = settings["hold"] == "tokens"
    assert patched.sequences_per_step == (8 if held else 20)
    batches = PlanBatches(np.arange(40_000), made, 0)
    tokens = 0
    for step in range(40):
        assert made.tokens_before(step) == tokens
        ids = batches.step(step)
        level = made.stage_at(step).level_at(step)
        assert ids.shape == (level.sequences_per_step, level.sequence_tokens)
        tokens += ids.size
    assert made.total_tokens == tokens
    size = model_size(tiny_model())
    of_patch, of_token = (size.flops_per_position(T, K).total for K in (4, 1))
    steps = patched.steps - patched.token_steps
    expected = 4 * patched.sequences_per_step * (of_patch + of_token) * steps
    expected += patched.token_steps * 8 * patched.sequences_per_step * of_token
    assert size.flops_of_stage(patched, patched.steps).total == pytest.approx(expected)


def test_shares_of_tokens_are_of_those_that_hybrid_sequences_read() -> None:
    made = plan(hybrid_share=0.5, hold="compute", steps=None, tokens=400_000)
    assert made.total_tokens == pytest.approx(400_000, rel=0.01)
    assert made.stages[0].tokens == pytest.approx(200_000, rel=0.02)


def test_a_plan_may_end_with_a_hybrid_stage() -> None:
    values = {"patch_fraction": 1.0, "hold": "compute"}
    assert plan(**values).warnings()
    assert plan(**values, hybrid_share=0.5).warnings() == []


# ---- average_at_switch


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, []),
        (0.01, [11, 23]),
        (0.25, [9, 10, 11, 21, 22, 23]),
        (1.0, list(range(24))),
    ],
)
def test_the_weights_of_a_stages_last_steps_are_averaged(share: float, expected: list[int]) -> None:
    stages = [[4, 0.3], [2, 0.3], [1, 0.4]]
    made = plan(stages=stages, patch_fraction=None, share_of="steps", average_at_switch=share)
    assert [stage.last_step for stage in made.stages] == [12, 24, 40]
    assert [step for step in range(40) if made.is_averaged(step)] == expected
