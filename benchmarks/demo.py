"""The demo over seeds and learning rates: does patches first win at equal compute, and how often?

Every arm of the demo is trained at every rate on the first seed, then each arm at its best rate
(best on that first seed) on the other seeds. All runs are kept in the result, those that lost too.

    python benchmarks/demo.py --out results/demo.json

Held equal between the arms: model, initial weights of a seed, tokenizer, text, steps, positions a
step (compute), schedule. Not equal: tokens read (patches read more), learning rate (each arm has
its own). About six minutes a pair of runs on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from patchtrain.demo import demo_recipes, demo_store, is_done, train_all
from patchtrain.files import write_text
from patchtrain.recipe import Recipe
from patchtrain.runs import RunFolder
from patchtrain.training.record import describe_process

ARMS = ("token-level", "patch-level")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/demo.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/demo-trials"), help="for the runs")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the quick demo's length, to try this")
    args = parser.parse_args()
    store = demo_store(args.work / "store", say, quiet=True)

    rows: list[dict[str, Any]] = []

    def train(wanted: list[tuple[str, float, int]]) -> None:
        """Train ``(arm, rate, seed)`` runs, two at a time, and add them to the rows."""
        for pair in (wanted[i : i + 2] for i in range(0, len(wanted), 2)):
            recipes = []
            for arm, rate, seed in pair:
                name = f"{arm}-{rate:g}-seed{seed}"
                built = dict(
                    zip(ARMS, demo_recipes(store, args.work, args.quick, seed), strict=True)
                )
                recipe: Recipe = built[arm]
                recipe.out = args.work / name
                recipe.training["learning_rate"] = rate
                recipes.append((name, recipe))
            train_all([item for item in recipes if not is_done(item[1], store)], say, quiet=True)
            for (arm, rate, seed), (_, recipe) in zip(pair, recipes, strict=True):
                info = RunFolder.open(recipe.out).info()
                rows.append({"arm": arm, "rate": rate, "seed": seed, "loss": info["result"]["loss"],
                             "bits_per_byte": info["result"]["bits_per_byte"],
                             "flops": info["flops"], "tokens": info["plan"]["total_tokens"],
                             "steps": info["plan"]["total_steps"],
                             "versions": info["versions"]})  # fmt: skip

    first = args.seeds[0]
    train([(arm, rate, first) for rate in args.rates for arm in ARMS])
    best = {
        arm: min((row["loss"], row["rate"]) for row in rows if row["arm"] == arm)[1] for arm in ARMS
    }
    train([(arm, best[arm], seed) for seed in args.seeds[1:] for arm in ARMS])

    losses = {
        arm: {
            row["seed"]: row["loss"]
            for row in rows
            if row["arm"] == arm and row["rate"] == best[arm]
        }
        for arm in ARMS
    }
    gaps = [losses["patch-level"][seed] - losses["token-level"][seed] for seed in args.seeds]
    summary = {
        "best_rate": best,
        "patch_minus_token": gaps,
        "mean": statistics.mean(gaps),
        "standard_deviation": statistics.stdev(gaps) if len(gaps) > 1 else None,
    }
    process = describe_process()
    result = {
        "benchmark": "demo",
        "command": process["command"],
        "started": process["started"],
        "versions": process["versions"],
        "machine": process["machine"],
        "corpus": store.meta["sources"],
        "held_equal": "compute: model, steps and positions a step; also text, tokenizer, schedule",
        "unit": "validation loss in nats a token",
        "runs": rows,
        "summary": summary,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(result, indent=2) + "\n")
    write_text(args.out.with_suffix(".md"), table(rows, summary, args.out.name))
    print(args.out.with_suffix(".md").read_text())


def table(rows: list[dict[str, Any]], summary: dict[str, Any], name: str) -> str:
    """The result as Markdown, for the docs to quote."""
    lines = [
        "| arm | learning rate | seed | validation loss | bits per byte |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['arm']} | {row['rate']:g} | {row['seed']} | {row['loss']:.4f} "
        f"| {row['bits_per_byte']:.4f} |"
        for row in sorted(rows, key=lambda row: (row["arm"], row["rate"], row["seed"]))
    ]
    spread = summary["standard_deviation"]
    lines += [
        "",
        f"Patch level less token level, each at its best rate, paired by seed: "
        f"{', '.join(f'{gap:+.4f}' for gap in summary['patch_minus_token'])}; "
        f"mean {summary['mean']:+.4f}"
        + (f", standard deviation {spread:.4f}" if spread is not None else "")
        + f" (below zero: patches first ended lower). From `{name}`.",
    ]
    return "\n".join(lines) + "\n"


def say(line: str) -> None:
    print(f"* {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
