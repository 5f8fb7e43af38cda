"""The numbers behind the advice, as they are shipped: ``published.json`` and ``own.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Pair:
    """A run with patches first beside the token-level run it is compared with."""

    parameters: float
    tokens: float  # of the token-level run
    gain: float  # nats a token by which patches first ended lower; below zero: it lost

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


@dataclass(frozen=True)
class Sweep:
    """Gains of one model at equal compute over step fractions (rows) and patch sizes (columns)."""

    parameters: float
    tokens: float
    step_fractions: np.ndarray  # (R,)
    patch_sizes: np.ndarray  # (C,)
    gains: np.ndarray  # (R, C), nats


@dataclass(frozen=True)
class Own:
    """One of the project's own comparisons, each arm at its best rate."""

    study: str  # in results/evidence/
    text: str
    vocab_size: int
    parameters: int
    tokens: int  # of the token-level run
    steps: int
    patch_size: int
    share: float  # of patches: r of the steps at equal compute, lambda of the tokens at equal data
    rows: str  # of patches: as many "positions" or "tokens" as at token level (PlanSpec.rows)
    rates: int  # that each arm was tried at
    gains: tuple[float, ...]  # nats a token, one a seed
    held_equal: str = "compute"

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters


@cache
def published() -> dict[str, Any]:
    """What the papers measured; do not change what you get."""
    return _read("published.json")


@cache
def own(held_equal: str = "compute") -> tuple[Own, ...]:
    """The project's own runs, made by ``benchmarks/collect_points.py``.

    Args:
        held_equal: compute or data.
    """
    rows = _read("own.json")["comparisons"]
    found = (Own(**{**row, "gains": tuple(row["gains"])}) for row in rows)
    return tuple(item for item in found if item.held_equal == held_equal)


def equal_data_pairs() -> list[Pair]:
    """2407.12665, K = 4, lambda = 2/3; nats a token of WikiText-103."""
    rows = published()["equal_data"]["rows"]
    return [Pair(n, d, float(np.log(token / patch))) for n, d, token, patch in rows]


def fraction_gains() -> dict[str, dict[float, float]]:
    """2407.12665, 370M: gain at each lambda over token level, by the name of the data."""
    values = published()["patch_fraction"]
    fractions = values["fractions"]
    return {
        family["name"]: {
            fraction: float(np.log(family["perplexity"][0] / perplexity))
            for fraction, perplexity in zip(fractions, family["perplexity"], strict=True)
        }
        for family in values["families"]
    }


def equal_compute_pairs() -> list[Pair]:
    """2605.06546, main table, K = 6, r = 0.3; nats a token."""
    rows = published()["equal_compute"]["rows"]
    return [Pair(n, d, token - patch) for n, _, d, token, patch in rows]


def sweep(name: str) -> Sweep:
    """2605.06546, the sweep of the model ``"270M"`` or ``"600M"``."""
    values = published()["sweeps"]
    model = values[name]
    return Sweep(
        model["parameters"],
        values["tokens"],
        np.array(model["step_fractions"]),
        np.array(model["patch_sizes"], float),
        model["token_loss"] - np.array(model["loss"]),
    )


def cite(source: str) -> str:
    """The arXiv number of a source, as the reasons name it."""
    number: str = published()["sources"][source]["arxiv"]
    return number


def _read(name: str) -> dict[str, Any]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values
