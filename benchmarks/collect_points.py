"""The project's own runs, from results/ to what the advice ships.

Reads the demo over seeds and learning rates (results/demo.json, every run of it), the size of its
model (results/demo-output.txt) and its patch size and step fraction (the demo's own settings), and
writes src/patchtrain/advice/own.json. The tests fail where the two no longer agree.

    python benchmarks/collect_points.py
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

from patchtrain.files import write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src" / "patchtrain" / "advice" / "own.json"
TOKEN, PATCH = "token-level", "patch-level"
KEYS = ("arm", "rate", "seed", "loss", "tokens", "steps")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="what to read")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    args = parser.parse_args()
    write_text(args.out, text(collect(args.results)))
    print(f"written to {args.out}")


def collect(results: Path) -> dict[str, Any]:
    """The own comparison, with the gain of each seed and all runs, lost ones too."""
    demo = json.loads((results / "demo.json").read_text(encoding="utf-8"))
    printed = (results / "demo-output.txt").read_text(encoding="utf-8")
    size = re.search(r"a model of ([\d,]+) parameters", printed)
    if size is None:
        raise SystemExit("collect_points.py: results/demo-output.txt names no model size")
    settings_file = ROOT / "src" / "patchtrain" / "demo" / "demo.yaml"
    settings = yaml.safe_load(settings_file.read_text(encoding="utf-8"))
    (plan,) = (arm["plan"] for arm in settings["arms"] if arm["folder"] == PATCH)
    runs = [{key: run[key] for key in KEYS} for run in demo["runs"]]
    best = demo["summary"]["best_rate"]
    losses = {
        (run["arm"], run["seed"]): run["loss"] for run in runs if run["rate"] == best[run["arm"]]
    }
    seeds = sorted({seed for _, seed in losses})
    (tokens,) = {run["tokens"] for run in runs if run["arm"] == TOKEN}
    (steps,) = {run["steps"] for run in runs}
    return {
        "about": "The project's own comparison: the demo's small model, token level against "
        "patches first. Gains in nats a token, one a seed, each arm at its best rate, which was "
        "chosen on the first seed.",
        "file": "results/demo.json",
        "held_equal": demo["held_equal"],
        "parameters": int(size[1].replace(",", "")),
        "tokens": tokens,
        "steps": steps,
        "patch_size": plan["patch_size"],
        "step_fraction": plan["step_fraction"],
        "best_rate": best,
        "seeds": seeds,
        "gains": [losses[TOKEN, seed] - losses[PATCH, seed] for seed in seeds],
        "runs": runs,
    }


def text(points: dict[str, Any]) -> str:
    """As the file has it."""
    return json.dumps(points, indent=1) + "\n"


if __name__ == "__main__":
    main()
