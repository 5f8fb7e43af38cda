"""What goes on inside a model, as rows of tables: for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from patchtrain.report.formats import count, is_number, number, percent, significant

Rows = tuple[list[str], list[list[str]]]


def neurons_rows(model: dict[str, Any]) -> Rows:
    """The share of activated feed-forward outputs: one row a layer, one column a patch size."""
    levels = model["levels"]
    head = ["layer", *(f"K = {level['patch_size']}" for level in levels), "root mean square"]
    head += [f"inner, K = {level['patch_size']}" for level in levels]
    rows = []
    for index, layer in enumerate(levels[0]["layers"]):
        same = [level["layers"][index] for level in levels]
        row = [f"{layer['layer']} {layer['name']}", *(percent(at["output_share"]) for at in same)]
        row.append(" ".join(significant(at["output_rms"], 2) for at in same))
        rows.append([*row, *(percent(at["inner_share"]) for at in same)])
    return head, rows


def slots_rows(models: Iterable[dict[str, Any]]) -> Rows:
    """The loss of each token of the next patch: one row a model and patch size.

    The error is the standard error over rows of the text, the largest of a row's tokens.
    """
    models = list(models)
    most = max(level["patch_size"] for model in models for level in model["levels"])
    head = ["model", "K", "mean", *(f"token {slot + 1}" for slot in range(most))]
    head.append("largest error")
    rows = []
    for model in models:
        for level in model["levels"]:
            row = [model["model"], str(level["patch_size"]), number(level["loss"], 4)]
            row += [number(slot["value"], 3) for slot in level["slots"]]
            row += [""] * (most - level["patch_size"])
            errors = [slot["error"] for slot in level["slots"] if is_number(slot["error"])]
            rows.append([*row, number(max(errors, default=None), 3)])
    return head, rows


def embeddings_rows(models: Iterable[dict[str, Any]]) -> Rows:
    """Lengths, mean cosine and directions of the embeddings: one row a model."""
    head = ["model", "tokens seen", "length", "its deviation", "cosine of two", "directions", "of"]
    rows = []
    for model in models:
        found = model["embeddings"]
        rows.append([
            model["model"], count(found["types"]), significant(found["norm"], 4),
            significant(found["norm_deviation"], 3), number(found["cosine"], 4),
            number(found["directions"], 1), str(found["width"]),
        ])  # fmt: skip
    return head, rows


def pooled_rows(models: Iterable[dict[str, Any]]) -> Rows:
    """How long a patch's embedding is against its tokens': one row a model."""
    models = list(models)
    sizes = [level["patch_size"] for level in models[0]["levels"]]
    rows = [
        [model["model"], *(number(level["pooled_norm"], 3) for level in model["levels"])]
        for model in models
    ]
    rows.append(["1 / sqrt(K)", *(number(K**-0.5, 3) for K in sizes)])
    return ["pooled length", *(f"K = {K}" for K in sizes)], rows


def drift_rows(drift: Iterable[dict[str, Any]]) -> Rows:
    """What became of the embeddings from one model of the run to the next."""
    head = ["from", "to", "cosine of a token's embeddings", "length after / before"]
    rows = [
        [entry["from"], entry["to"], number(entry["cosine"], 4), number(entry["norm_ratio"], 4)]
        for entry in drift
    ]
    return head, rows
