"""The map of where patches win at equal compute: the own runs beside the published ones.

    python benchmarks/map.py

Reads results/evidence/*.json and what the papers published (src/patchtrain/advice/published.json).
A point is a contender that differs from token level in K and r only, over the seeds that both have,
each at its own best rate; its gain is what it ended lower by. Through the own points a plane is
laid, and each corpus's points are predicted by the others. Writes results/map.json, and with
matplotlib docs/map.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import about, write

from patchtrain.advice import points as published
from patchtrain.advice.fits import Fit

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "results" / "evidence"
OUT = ROOT / "results" / "map.json"
FIGURE = ROOT / "docs" / "map.svg"
# All of a plan that a plain contender replaces; the others stand for None here.
PLAIN = {"plan.patch_size", "plan.step_fraction", "plan.patch_fraction", "plan.stages",
         "plan.steps", "plan.tokens", "plan.epochs"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=EVIDENCE, help="what to read (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the result (%(default)s)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="the drawing (%(default)s)")
    args = parser.parse_args()
    own = [point for file in sorted(args.kept.glob("*.json")) for point in own_points(file)]
    if not own:
        raise SystemExit(f"map.py: no comparison in {args.kept}; benchmarks/evidence.py trains them")
    found = {
        **about("map", "compute"),
        "points": own,
        "published": published_points(),
        "fit": plane(own),
    }
    write(args.out, found)
    draw(found, args.figure)
    print(f"written to {args.figure}")


def own_points(file: Path) -> list[dict[str, Any]]:
    """The plain contenders of one study of evidence.yaml that have a pair of runs."""
    study = json.loads(file.read_text(encoding="utf-8"))
    arms = {arm["name"]: arm for arm in study["arms"]}
    chosen = {item["name"]: item["chosen"] for item in study["contenders"]}
    edges = {item["name"]: item.get("edge") for item in study["contenders"]}
    found = []
    for item in study["contenders"]:
        if not item["reference"] or not item["chosen"] or not chosen[item["reference"]]:
            continue
        arm, token = arms[item["chosen"]], arms[chosen[item["reference"]]]
        entries = {key for key, value in arm["recipe"].items() if value is not None}
        more = {key for key in entries - PLAIN if key.startswith("plan.")}
        losses = {run["seed"]: run["loss"] for run in arm["runs"]}
        gains = [
            run["loss"] - losses[run["seed"]] for run in token["runs"] if run["seed"] in losses
        ]
        if more or not gains or study["held_equal"] != "compute" or not is_plain(arm["recipe"]):
            continue
        base = token["runs"][0]
        found.append({
            "study": study_name(file),
            "corpus": study["about"]["corpus"].rpartition("-")[0],
            "contender": item["name"],
            "parameters": base["parameters"],
            "body_parameters": base["body_parameters"],
            "vocab_size": base["vocab_size"],
            "tokens": base["total_tokens"],
            "steps": base["total_steps"],
            "epochs": statistics.fmean(run["epochs"] for run in arm["runs"]),
            "patch_size": arm["recipe"]["plan.patch_size"],
            "step_fraction": arm["recipe"]["plan.step_fraction"],
            "token_loss": statistics.fmean(run["loss"] for run in token["runs"]),
            "gain": statistics.fmean(gains),
            "seeds": len(gains),
            "rates": len(item["tried"]),
            "edge": sorted({edge for edge in (item.get("edge"), edges[item["reference"]]) if edge}),
        })  # fmt: skip
    return found


def is_plain(entries: dict[str, Any]) -> bool:
    """Whether a contender is one K for a share of the steps, and nothing else."""
    return bool(entries.get("plan.step_fraction")) and entries.get("plan.patch_size", 1) > 1


def study_name(file: Path) -> str:
    return file.stem


def published_points() -> list[dict[str, Any]]:
    """Gains of the papers, one run each: at equal compute and at equal data."""
    values = published.published()
    at_compute, at_data = values["equal_compute"], values["equal_data"]
    return [
        {"held_equal": held, "parameters": pair.parameters, "tokens": pair.tokens,
         "patch_size": table["patch_size"], "gain": pair.gain}
        for held, table, pairs in (
            ("compute", at_compute, published.equal_compute_pairs()),
            ("data", at_data, published.equal_data_pairs()),
        )
        for pair in pairs
    ]  # fmt: skip
