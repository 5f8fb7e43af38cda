"""Neurons, embeddings and loss by slot, against loops and against the loss of training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.analysis import inside
from patchtrain.analysis.feed_forward import counting, find_feed_forwards
from patchtrain.analysis.inspection import token_embeddings
from patchtrain.errors import UsageError
from patchtrain.evaluation.loading import load_model
from patchtrain.loss import patch_loss_reference
from patchtrain.modeling import patch_level
from patchtrain.patches import patch_targets
from tests.evaluation.tiny import save_tiny_model, save_tiny_run
from tests.models import VOCAB, tiny_model

IDS = torch.randint(0, VOCAB, (1, 24), generator=torch.Generator().manual_seed(0))
_SETTINGS: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4},
}


@pytest.mark.parametrize(
    ("family", "output", "inner"),
    [
        ("llama", "mlp.down_proj", 64),
        ("gpt2", "mlp.c_proj", 128),
        ("opt", "fc2", 64),
        ("bloom", "mlp.dense_4h_to_h", 128),
        ("gpt_neox", "mlp.dense_4h_to_h", 64),
        ("gemma2", "mlp.down_proj", 64),
        ("mixtral", "mlp", None),
    ],
)
def test_feed_forward_parts_are_found_in_every_family(
    family: str, output: str, inner: int | None
) -> None:
    model = tiny_model(family, **_SETTINGS.get(family, {}))
    parts = find_feed_forwards(model)
    assert [part.layer for part in parts] == [0, 1]
    names = {module: name for name, module in model.named_modules()}
    assert all(names[part.output].endswith(output) for part in parts)
    with counting(parts, 0.0) as found, torch.no_grad():
        model.eval()(input_ids=IDS)
    for layer in found:
        assert layer.output.entries == 24 * 32
        assert layer.inner.entries == (24 * inner if inner else 0)
        assert (layer.part.inner is None) == (inner is None)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in names)


def test_a_model_without_feed_forward_parts_has_none() -> None:
    assert find_feed_forwards(tiny_model("mamba", state_size=4)) == []


@pytest.mark.parametrize("K", [1, 3])
def test_activity_is_counted_as_by_hand(K: int) -> None:
    model = tiny_model("llama").eval()
    kept: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, out: kept.append(out.detach()))
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    threshold = 1e-3
    levels = inside.read_levels(model, IDS[0].numpy(), [K], 24 // K, threshold)
    # The last passes are those that were counted; what went before looked for the parts.
    inner_1, output_1, inner_2, output_2 = kept[-4:]
    (level,) = levels
    for layer, inner, output in zip(
        level["layers"], (inner_1, inner_2), (output_1, output_2), strict=True
    ):
        assert layer["name"] == "mlp"
        for name, values in (("inner", inner), ("output", output)):
            assert values.shape[1] == 24 // K
            above = sum(abs(value) > threshold for value in values.flatten().tolist())
            assert layer[f"{name}_share"] == pytest.approx(above / values.numel())
            assert layer[f"{name}_rms"] == pytest.approx(float(values.square().mean().sqrt()))
    assert 0 < level["layers"][0]["output_share"] < 1


@pytest.mark.parametrize("K", [1, 2, 4])
def test_slots_are_the_terms_of_the_patch_loss(K: int) -> None:
    model = tiny_model("llama").eval()
    (level,) = inside.read_levels(model, IDS[0].numpy(), [K], 24 // K)
    with torch.no_grad():
        with patch_level(model, K):
            loss = float(model(input_ids=IDS, labels=IDS).loss)
            logits = model(input_ids=IDS).logits
        targets = patch_targets(IDS, K)
        for slot, found in enumerate(level["slots"]):
            weights = [float(slot == other) for other in range(K)]
            expected = patch_loss_reference(logits[:, :-1], targets, weights)
            assert found["value"] == pytest.approx(float(expected), rel=1e-5)
            assert found["error"] is None  # of one row
    assert level["loss"] == pytest.approx(loss, rel=1e-5)
    assert (level["tokens"], level["positions"]) == (24, 24 // K)
    assert "forward" not in model.__dict__


def test_rows_fill_the_context_and_a_short_text_is_one_row() -> None:
    tokens = np.arange(50)
    assert inside.cut_rows(tokens, 2, 8).tolist() == tokens[:48].reshape(3, 16).tolist()
    assert inside.cut_rows(tokens, 4, 100).tolist() == [tokens[:48].tolist()]
    with pytest.raises(UsageError, match="fewer than two patches of 32"):
        inside.cut_rows(tokens, 32, 100)
    with pytest.raises(UsageError, match="fewer than two patches of 4"):
        inside.cut_rows(tokens, 4, 1)


def test_batches_change_nothing_and_errors_are_over_rows() -> None:
    model, rng = tiny_model("llama"), np.random.default_rng(0)
    tokens, counts = rng.integers(0, VOCAB, 160), list[int]()
    whole = inside.read_levels(model, tokens, [2], 8)
    parts = inside.read_levels(model, tokens, [2], 8, batch_size=3, advance=counts.append)
    assert counts == [48, 48, 48, 16]
    assert model.training
    for one, other in zip(whole[0]["slots"], parts[0]["slots"], strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-5)
        assert one["error"] == pytest.approx(other["error"], rel=1e-4)
        assert 0 < one["error"] < 1
    with pytest.raises(UsageError, match=f"token id {VOCAB}"):
        inside.read_levels(model, np.full(50, VOCAB), [2], 8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_geometry_agrees_with_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, seen = rng.normal(size=(12, 5)) + 0.5, rng.integers(0, 12, 30)
    found = inside.geometry(table, seen)
    own = table[sorted(set(seen.tolist()))]
    lengths = [math.sqrt(sum(x * x for x in row)) for row in own]
    cosines = [
        float(own[i] @ own[j]) / lengths[i] / lengths[j]
        for i in range(len(own))
        for j in range(len(own))
        if i != j
    ]
    eigenvalues = np.linalg.eigvalsh(np.cov(own.T))
    assert found["types"] == len(own)
    assert found["width"] == 5
    assert found["norm"] == pytest.approx(np.mean(lengths))
    assert found["norm_deviation"] == pytest.approx(np.std(lengths))
    assert found["cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    ratio = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert found["directions"] == pytest.approx(ratio)


def test_directions_and_pooled_lengths_at_their_ends() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4000, 64))
    tokens = rng.integers(0, 4000, 40_000)
    assert inside.geometry(table, tokens)["directions"] == pytest.approx(64, rel=0.05)
    line = np.outer(rng.normal(size=4000), np.ones(64))
    assert inside.geometry(line, tokens)["directions"] == pytest.approx(1)
    for K in (1, 4, 16):
        assert inside.pooled_norm(table, tokens, K) == pytest.approx(K**-0.5, rel=0.02)
    assert inside.pooled_norm(table, np.full(64, 7), 4) == pytest.approx(1)
    with pytest.raises(UsageError, match="less than one patch"):
        inside.pooled_norm(table, tokens[:3], 4)


def test_drift_of_what_turned_and_grew() -> None:
    before = np.eye(4)
    assert inside.drift(before, 3 * before, np.arange(4)) == {"cosine": 1.0, "norm_ratio": 3.0}
    after = before[[1, 0, 2, 3]]
    assert inside.drift(before, after, np.arange(4))["cosine"] == 0.5
    assert inside.drift(before, after, np.array([2, 3, 3]))["cosine"] == 1.0
    with pytest.raises(UsageError, match="cannot become"):
        inside.drift(before, np.eye(5), np.arange(4))


def test_embeddings_are_what_the_model_makes_of_tokens() -> None:
    model = tiny_model("gemma2")  # scales its embeddings
    table = token_embeddings(model)
    ids = torch.arange(VOCAB)[None]
    expected = model.get_input_embeddings()(ids)[0].detach().numpy()
    np.testing.assert_allclose(table, expected)


def test_the_models_a_run_kept_come_in_order(tmp_path: Path) -> None:
    run = save_tiny_run(tmp_path / "run")
    for name in ("stage-10", "stage-2", "stage-x", "other"):
        save_tiny_model(run / name)
    (run / "stage-3").mkdir()
    loaded = load_model(run)
    assert [folder.name for folder in inside.stage_models(loaded)] == ["stage-2", "stage-10"]
    assert inside.stage_models(load_model(run / "model")) == []
