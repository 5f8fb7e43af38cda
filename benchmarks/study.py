"""The studies of the package on one corpus, with their default recipe: what docs/studies.md quotes.

    python benchmarks/study.py ablation
    python benchmarks/study.py tokenizers --tokenizer mistral=tokenizer.json
    python benchmarks/study.py ablation --corpus textbooks.jsonl.xz --steps 8000 --seeds 0 1 2

It does what `patchtrain study` does, in --work, and keeps the results with where they came from.
Stopped, it goes on when it is called again. Each takes under 20 minutes on two quiet cores.
Held equal between the arms: compute, counted by cost.py, but for whole steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import about, write

from patchtrain.cli.main import main as patchtrain

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=["ablation", "tokenizers"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the study's recipe")
    parser.add_argument("--out", type=Path, help="default: results/study-NAME.json")
    parser.add_argument("--work", type=Path, help="the study's folder (default: studies/NAME)")
    parser.add_argument("--corpus", help="what prepare reads (default: the standard library)")
    parser.add_argument("--tokenizer", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--seeds", nargs="+", default=["0", "1"])
    parser.add_argument("--steps")
    parser.add_argument("--workers")
    args = parser.parse_args()
    work = args.work or Path("studies") / args.study
    words = ["study", args.study, *([args.corpus] if args.corpus else []), *args.overrides]
    words += ["--out", str(work), "--seeds", *args.seeds]
    for name in ("steps", "workers"):
        if value := getattr(args, name):
            words += [f"--{name}", value]
    for named in args.tokenizer:
        words += ["--tokenizer", named]
    if code := patchtrain(words):
        raise SystemExit(code)
    found = json.loads((work / "results.json").read_text(encoding="utf-8"))
    name = f"study-{args.study}"
    head = about(name, "compute, but for whole steps")
    held = {"settings": {"threads": 1}, "machine_of_runs": found.pop("machine")}
    write(args.out or ROOT / "results" / f"{name}.json", {**found, **head, **held})


if __name__ == "__main__":
    main()
