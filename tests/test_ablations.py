"""The ablations of a patch-level stage, each against the slow way to say the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import PatchConfig, PatchTrainer, UsageError, patch_level, patch_loss_reference
from patchtrain.ablations import (
    following_tokens,
    interleaved,
    shuffled,
    stage_targets,
    target_weights,
)
from patchtrain.patches import IGNORE
from patchtrain.plan import PlanSpec
from patchtrain.runs import RunFolder
from patchtrain.stage import ABLATIONS, Stage
from patchtrain.training.passes import count_targets
from tests.data.test_batches import batches
from tests.models import VOCAB, tiny_model


@given(rows=st.integers(1, 3), length=st.integers(2, 12), count=st.integers(1, 5))
def test_following_tokens_are_the_next_ones_up_to_the_rows_end(
    rows: int, length: int, count: int
) -> None:
    labels = torch.arange(rows * length).view(rows, length)
    found = following_tokens(labels, count)
    assert found.shape == (rows, length - 1, count)
    for row in range(rows):
        for place in range(length - 1):
            for step in range(count):
                after = place + 1 + step
                expected = int(labels[row, after]) if after < length else IGNORE
                assert found[row, place, step] == expected


def test_a_row_of_one_token_has_nothing_that_follows() -> None:
    with pytest.raises(UsageError, match="nothing to predict"):
        following_tokens(torch.zeros(2, 1, dtype=torch.int64), 4)


@given(rows=st.integers(1, 3), K=st.integers(1, 5), T=st.integers(1, 6))
def test_interleaved_rows_hold_the_same_place_of_k_sequences_in_a_patch(
    rows: int, K: int, T: int
) -> None:
    pieces = np.arange(rows * K * T).reshape(rows * K, T)
    mixed = interleaved(pieces, K)
    assert mixed.shape == (rows, K * T)
    for row in range(rows):
        for place in range(T):
            patch = mixed[row, place * K : (place + 1) * K]
            assert patch.tolist() == [pieces[row * K + k, place] for k in range(K)]


def test_shuffled_takes_each_row_by_its_own_order() -> None:
    rows, order = np.array([[5, 6, 7], [8, 9, 10]]), np.array([[2, 0, 1], [0, 2, 1]])
    assert shuffled(rows, order).tolist() == [[7, 5, 6], [8, 10, 9]]


@given(
    rows=st.integers(1, 3),
    K=st.integers(2, 5),
    T=st.integers(2, 6),
    ablation=st.sampled_from([None, *ABLATIONS]),
    power=st.booleans(),
)
def test_the_number_of_targets_is_that_of_the_definition(
    rows: int, K: int, T: int, ablation: str | None, power: bool
) -> None:
    weights = tuple(float(k + 1) for k in range(K)) if power else (1.0,) * K
    stage = Stage(0, K, 0, 1, T, rows, 0, 1, weights, ablation)
    ids = torch.randint(0, 9, (rows, stage.sequence_tokens))
    if ablation == "input-only":
        expected = rows * (T - 1.0)
    elif ablation == "output-only":  # of a row of T tokens, those that have k after them
        expected = rows * sum(weights[k] * max(T - 1 - k, 0) for k in range(K))
    else:
        expected = rows * (T - 1) * sum(weights)
    assert count_targets({"input_ids": ids}, stage) == pytest.approx(expected)


@pytest.mark.parametrize("ablation", ["input-only", "output-only"])
@pytest.mark.parametrize("backend", ["chunked", "plain"])
def test_loss_and_gradients_equal_the_formula_on_full_logits(ablation: str, backend: str) -> None:
    K, model = 4, tiny_model()
    ids = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    with patch_level(model, K, "power", ablation=ablation, backend=backend) as handle:
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    fast = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    embedded = model.get_input_embeddings()(ids)
    if ablation == "input-only":
        logits = model(inputs_embeds=embedded.view(2, 6, K, -1).mean(2)).logits[:, :-1]
        slow = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, K::K].flatten())
    else:
        logits = model(inputs_embeds=embedded).logits
        terms, total = torch.zeros(()), 0.0
        for k, weight in enumerate(handle.weights):
            part = logits[:, : -1 - k].log_softmax(-1)
            terms = terms - weight * part.gather(-1, ids[:, 1 + k :, None]).sum()
            total += weight * ids[:, 1 + k :].numel()
        slow = terms / total
    torch.testing.assert_close(loss, slow, rtol=1e-5, atol=1e-6)
    slow.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fast[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("ablation", ["mixup", "shuffled"])
def test_another_order_of_the_tokens_is_nothing_to_the_model(ablation: str) -> None:
    stages = [{"patch_size": 4, "share": 1.0, "ablation": ablation}]
    spec = PlanSpec(context_length=8, tokens_per_step=64, steps=4, stages=stages)
    stage = spec.resolve().stages[0]
    assert stage.ablation == ablation
    with patch_level(tiny_model(), 4, **stage.reading()) as handle:
        assert handle.ablation is None


def test_no_ablation_changes_nothing() -> None:
    ids = torch.randint(0, VOCAB, (2, 24))
    assert target_weights((1.5, 0.5), None) == (1.5, 0.5)
    targets = stage_targets(ids, 4)
    assert patch_loss_reference(torch.zeros(2, 5, VOCAB), targets).item() == pytest.approx(
        float(np.log(VOCAB))
    )


# ---- the plan and the rows of an ablated stage


def stages(ablation: str | None = None, **first: Any) -> list[dict[str, Any]]:
    ablated = {"ablation": ablation} if ablation else {}
    return [
        {"patch_size": 4, "share": 0.5, **ablated, **first},
        {"patch_size": 1, "share": 0.5},
    ]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("hold", ["compute", "tokens"])
def test_ablated_stages_read_no_token_twice_and_cost_the_same(ablation: str, hold: str) -> None:
    common: dict[str, Any] = {"share_of": "steps", "steps": 20, "hold": hold}
    whole = batches(stages=stages(), **common)
    data = batches(stages=stages(ablation), **common)
    seen = np.concatenate([data.step(step).ravel() for step in range(len(data))])
    assert len(np.unique(seen)) == len(seen) == data.plan.total_tokens
    if hold == "compute":
        assert data.plan.total_positions == whole.plan.total_positions
    else:
        assert data.plan.total_tokens == whole.plan.total_tokens


def test_a_mixup_reads_k_places_and_a_shuffle_one() -> None:
    mixed = batches(stages=stages("mixup"), share_of="steps", steps=20).step(3)
    assert mixed.shape == (16, 64)
    pieces = mixed.reshape(16, 16, 4).swapaxes(1, 2)  # row, sequence, place
    assert (np.diff(pieces, axis=2) == 1).all()
    apart = np.abs(np.diff(pieces[:, :, 0], axis=1))
    assert np.median(apart) > 64
    data = batches(stages=stages("shuffled"), share_of="steps", steps=20)
    rows = data.step(3)
    assert (np.diff(np.sort(rows, axis=1), axis=1) == 1).all()
    assert (np.diff(rows, axis=1) == 1).mean() < 0.1
    orders = rows.argsort(axis=1)
    assert len(np.unique(orders, axis=0)) == len(orders), "every row has an order of its own"
    assert np.array_equal(rows, data.step(3))


def test_rows_of_an_ablation_do_not_depend_on_the_number_of_processes() -> None:
    for ablation in ABLATIONS:
        common: dict[str, Any] = {"stages": stages(ablation), "share_of": "steps", "steps": 20}
        one, two = batches(**common), batches(processes=2, **common)
        assert np.array_equal(one.step(5), np.concatenate([two.step(5, 0), two.step(5, 1)]))


def test_a_stage_can_have_a_context_of_its_own() -> None:
    spec = PlanSpec.from_dict(
        {
            "context_length": 16,
            "tokens_per_step": 256,
            "preset": "superposition",
            "share_of": "steps",
            "steps": 20,
            "stages": [
                {"patch_size": 1, "share": 0.25, "context_length": 64},
                {"patch_size": 4, "share": 0.25, "context_length": 4},
                {"patch_size": 1, "share": 0.5},
            ],
        }
    )
    assert spec.longest_context() == 64
    plan = spec.resolve(store_tokens=20_000, device_sequences=8)
    assert [stage.sequences_per_step for stage in plan.stages] == [4, 64, 16]
    assert [stage.positions_per_step for stage in plan.stages] == [256, 256, 256]
    assert [plan.pass_rows(stage) for stage in plan.stages] == [2, 32, 8]
    assert [plan.passes(stage) for stage in plan.stages] == [2, 2, 2]
    assert plan.block_tokens == 64


@pytest.mark.parametrize(
    ("first", "plan", "message"),
    [
        ({"ablation": "mixin"}, {}, "'mixin' of a stage is not one of input-only"),
        ({"ablation": ["mixup"]}, {}, "is not one of"),
        ({"ablation": "mixup", "patch_size": 1}, {}, "needs patches: a patch_size above 1"),
        ({"ablation": "mixup"}, {"documents": "separate"}, "needs documents: mixed"),
        ({"context_length": 1}, {}, "context_length of a stage must be a whole number"),
        ({"context_length": 24}, {}, "not a multiple of 48 .context_length 48"),
        ({"ablate": "mixup"}, {}, "did you mean 'ablation'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    first: dict[str, Any], plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        batches(stages=stages(**first), steps=20, **plan)


@pytest.mark.parametrize(
    "first", [*({"ablation": name} for name in ABLATIONS), {"patch_size": 1, "context_length": 32}]
)
def test_a_run_trains_through_a_stage_to_study(first: dict[str, Any], tmp_path: Path) -> None:
    plan = {
        "preset": "superposition",
        "context_length": 8,
        "tokens_per_step": 64,
        "stages": stages(**first),
        "share_of": "steps",
        "steps": 8,
    }
    args = PatchConfig(
        str(tmp_path), plan=plan, use_cpu=True, disable_tqdm=True, logging_steps=1,
        per_device_train_batch_size=4, save_strategy="no", eval_steps=2,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, VOCAB, 4000).astype(np.uint16)
    PatchTrainer(tiny_model(), args, tokens, eval_dataset=tokens[:500]).train()
    run = RunFolder.open(tmp_path)
    logged = run.metrics("train")[0]
    assert logged["loss"] == pytest.approx(np.log(VOCAB), abs=0.6), "about log V at the start"
    stage = run.info()["plan"]["stages"][0]
    assert stage.items() >= first.items()
    assert logged["positions"] == stage["positions_per_step"] == 64
    has_patch_loss = ["patch_loss" in row for row in run.metrics("eval") if row["stage"] == 0]
    assert any(has_patch_loss) == (first.get("ablation") in ("input-only", "output-only"))
