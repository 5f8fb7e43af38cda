"""Pieces of the tables that `tables.py` makes of the benchmarks' results."""

from __future__ import annotations

from typing import Any


def head(*names: str) -> list[str]:
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def verdict(target: str, value: float, reached: bool) -> str:
    return f"- Target: {target}: {value:.2f}, {'reached' if reached else '**not reached**'}."
