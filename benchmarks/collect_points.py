"""The project's own runs, from results/ to what the advice ships.

Reads the demo over seeds and learning rates (results/evidence/demo.json and its runs, all of them),
and what the same model gained on other text, and writes src/patchtrain/advice/own.json. The tests
fail where the two no longer agree.

    python benchmarks/collect_points.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from patchtrain.files import write_text

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "results" / "evidence"
OUT = ROOT / "src" / "patchtrain" / "advice" / "own.json"
STUDY, TOKEN, PATCH = "demo", "token", "k2"
OTHER_TEXT = {"cpp": "C++ headers", "textbooks": "textbooks", "novels": "novels"}
KEYS = ("seed", "learning_rate", "loss", "total_tokens", "total_steps")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=EVIDENCE, help="what to read")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write")
    args = parser.parse_args()
    write_text(args.out, text(collect(args.kept)))
    print(f"written to {args.out}")


def collect(kept: Path) -> dict[str, Any]:
    """The own comparison, with the gain of each seed and all runs, lost ones too."""
    found = json.loads((kept / f"{STUDY}.json").read_text(encoding="utf-8"))
    contenders = {item["name"]: item for item in found["contenders"]}
    arms = {arm["name"]: arm for arm in found["arms"]}
    gains = gains_of(found)
    base = arms[contenders[TOKEN]["chosen"]]["runs"][0]
    changed = arms[contenders[PATCH]["chosen"]]["recipe"]
    return {
        "about": "The project's own comparison: the demo's small model, token level against "
        "patches first. Gains in nats a token, one a seed, each arm at its best rate, which was "
        "chosen on the first seed.",
        "file": f"results/evidence/{STUDY}.json",
        "held_equal": found["held_equal"],
        "parameters": base["parameters"],
        "tokens": base["total_tokens"],
        "steps": base["total_steps"],
        "patch_size": changed["plan.patch_size"],
        "step_fraction": changed["plan.step_fraction"],
        "best_rate": {name: contenders[name]["learning_rate"] for name in (TOKEN, PATCH)},
        "seeds": list(gains),
        "gains": list(gains.values()),
        "other_text": {
            text: list(gains_of(json.loads((kept / f"{study}.json").read_text("utf-8"))).values())
            for study, text in OTHER_TEXT.items()
        },
        "runs": [
            {"arm": arm["name"], **{key: run[key] for key in KEYS}}
            for arm in found["arms"]
            for run in arm["runs"]
        ],
    }


def gains_of(found: dict[str, Any]) -> dict[int, float]:
    """Nats a token by which patches ended lower, by seed, each arm at its best rate."""
    chosen = {item["name"]: item["chosen"] for item in found["contenders"]}
    losses = {
        arm["name"]: {run["seed"]: run["loss"] for run in arm["runs"]} for arm in found["arms"]
    }
    token, patch = losses[chosen[TOKEN]], losses[chosen[PATCH]]
    return {seed: token[seed] - patch[seed] for seed in sorted(token.keys() & patch.keys())}


def text(points: dict[str, Any]) -> str:
    """As the file has it."""
    return json.dumps(points, indent=1) + "\n"


if __name__ == "__main__":
    main()
