"""Train the main comparison of the evidence again, with seeds it has not seen: does it come out?

    make evidence
    python benchmarks/evidence_again.py --seeds 100 101 102
    python benchmarks/evidence_again.py --quick

A reduced study: token level and the arm that evidence.yaml's `again` names, at the learning rates
that the whole study found best for each, over two new seeds, at the whole study's length (shorter
runs may come out otherwise, which is part of the evidence). Under half an hour on two cores, with
text that is on every machine. What comes out must agree in sign with results/evidence/STUDY.json;
if it does not, the exit code is 1. --out keeps it. --quick takes a minute and shows only that
everything works.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from common import about, one_line, write
from evidence import ASKED, KEPT, make_store, question_of

from patchtrain.analysis.studies.comparison import run_comparison
from patchtrain.analysis.studies.question import BASELINE, RATE, Question
from patchtrain.cli.compare import print_results

_QUICK_STEPS = 40
_TRAINING = RATE.partition(".")[2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101], metavar="N")
    parser.add_argument("--work", type=Path, default=Path("studies/again"), help="for the runs")
    parser.add_argument("--data", type=Path, default=Path("corpora"), metavar="TEXTS")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one a core)")
    parser.add_argument("--quick", action="store_true", help="a minute, for function only")
    parser.add_argument("--asked", type=Path, default=ASKED, help="the studies (%(default)s)")
    parser.add_argument("--kept", type=Path, default=KEPT, help="what came out (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write what came out into this file")
    args = parser.parse_args()
    asked = yaml.safe_load(args.asked.read_text(encoding="utf-8"))
    name, arm = asked["again"]["study"], asked["again"]["arm"]
    whole = json.loads((args.kept / f"{name}.json").read_text(encoding="utf-8"))
    study, data = asked["studies"][name], args.data.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    with one_line(name), contextlib.chdir(args.work):
        store = make_store(study["store"], asked["stores"], data)
        question = reduced(study, whole, arm, store, args.seeds, args.quick)
        place = Path(f"{name}-quick" if args.quick else name)
        found = run_comparison(question, place, args.workers, say=_say, keep="results")
        print_results(found)
    then, now = difference(whole, arm), difference(found, arm)
    print(f"{arm} less {BASELINE}, bits per byte: {_words(now)} now, {_words(then)} in {name}.json")
    if args.out and not args.quick:
        rates = {item["name"]: item["learning_rate"] for item in found["contenders"]}
        settings = {"study": name, "arm": arm, "seeds": args.seeds, "rates": rates}
        # Trained side by side on one machine, so that their times may be compared.
        seconds = {item["name"]: item["seconds"]["mean"] for item in found["contenders"]}
        write(args.out, {**about("evidence_again", found["held_equal"]), "settings": settings,
                         "first": then, "again": now, "seconds": seconds})  # fmt: skip
    if args.quick:
        print("so short a run says nothing of the sign")
    elif (now["mean"] < 0) != (then["mean"] < 0):
        raise SystemExit(f"the sign of {arm} less {BASELINE} is not that of {name}.json")
    else:
        print("they agree in sign")


def reduced(
    study: Mapping[str, Any],
    whole: Mapping[str, Any],
    arm: str,
    store: Path,
    seeds: list[int],
    quick: bool,
) -> Question:
    """Token level and one arm of a study, each at the rate that was its best."""
    ended = [item for item in whole["contenders"] if item["bits_per_byte"]]
    rates = {item["name"]: item["learning_rate"] for item in ended}
    if missing := {BASELINE, arm} - rates.keys():
        raise SystemExit(
            f"no finished run of {', '.join(sorted(missing))} is kept yet, to compare with; "
            "python benchmarks/evidence.py trains them"
        )
    recipe = copy.deepcopy(study["recipe"])
    recipe["training"][_TRAINING] = rates[BASELINE]
    if quick:
        recipe["plan"]["steps"] = _QUICK_STEPS
    arms = {arm: {**study["arms"][arm], RATE: rates[arm]}}
    asked = {
        **study, "recipe": recipe, "arms": arms, "rates": (), "tuning": 1, "confirm": None,
        "budgets": (), "budget_rate": None, "seeds": seeds,
    }  # fmt: skip
    return question_of(asked, store)


def difference(found: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Of an arm to token level, over the seeds; ends the script where a run is missing."""
    item = next(item for item in found["contenders"] if item["name"] == arm)
    if item["difference"] is None:
        raise SystemExit(f"{arm} and {BASELINE} are not both finished")
    result: dict[str, Any] = item["difference"]
    return result


def _words(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:+z.4f} ({found['count']} seed{'s' * (found['count'] > 1)})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
