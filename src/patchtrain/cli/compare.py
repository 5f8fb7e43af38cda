"""Train one recipe in several ways over several seeds and say which ends lowest, and by how much.

examples:
  patchtrain compare recipes/small.yaml --dry-run
  patchtrain compare recipes/small.yaml --rates 2e-3 4e-3 8e-3 --seeds 0 1 2
  patchtrain compare recipes/small.yaml --arms recipe "k4:patch_size=4,step_fraction=0.2"
  patchtrain compare recipes/small.yaml --baseline-budgets --rates 2e-3 4e-3 8e-3

Arms are `token` (token level throughout, always there), `recipe` (the plan as it is), `patchtrain`
(K and rows by the model's size), `paper` and `superposition` (with the recipe's K, or their own
where it names none), and any of your own: a name and the entries of the recipe to replace. Each is
made as long as costs what token level costs at the recipe's length. Give --rates: every arm is then
taken at its own best of them, chosen on the first seed; a comparison with one tuned arm is worth
nothing.

One process a GPU trains the runs, without a GPU one a core; Ctrl-C leaves a folder that the same
command goes on with, and more arms, seeds, rates or budgets may be asked for later. OUT/report.html
is the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli.parser import at_least_one, general
from patchtrain.cli.results import show_json

if TYPE_CHECKING:
    from patchtrain.analysis.studies.question import Question
    from patchtrain.analysis.studies.search import Search

HELP = "train one recipe in several ways over seeds, and say by how much they differ"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_common(parser, [0, 1, 2])
    parser.add_argument(
        "--arms",
        nargs="+",
        default=[],
        metavar="ARM",
        help="token, recipe, patchtrain, paper, superposition, or NAME:key=value,... (default: "
        "those five)",
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[],
        metavar="RATE",
        help="peak learning rates that every arm is tried at (default: the recipe's own, untuned)",
    )
    parser.add_argument(
        "--baseline-budgets",
        type=float,
        nargs="*",
        metavar="SHARE",
        help="also train token level at these shares of its compute, for the comparison at equal "
        "loss (without numbers: 0.4 0.5 0.63 0.8 1 1.26)",
    )
    parser.add_argument(
        "--baseline-rate",
        type=float,
        metavar="RATE",
        help="their learning rate, but for the full length (default: token level's best there)",
    )


def add_common(parser: argparse.ArgumentParser, seeds: list[int]) -> None:
    """What ``compare`` and ``study sweep`` share."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe whose store is there")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="entries of the recipe to replace, such as plan.steps=2000",
    )
    what = parser.prog.split()[-1]  # compare, or sweep
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help=f"the folder (default: studies/{what}-NAME-OF-RECIPE)",
    )
    parser.add_argument(
        "--equal",
        choices=("compute", "data"),
        default="compute",
        help="what every arm has as much of as token level (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=seeds,
        metavar="N",
        help="of weights and data order; runs with the same seed are paired (default: "
        + " ".join(map(str, seeds))
        + ")",
    )
    parser.add_argument(
        "--tuning-seeds",
        type=int,
        default=1,
        metavar="N",
        help="how many of the seeds, from the first on, choose the learning rates (default: "
        "%(default)s; more where runs of one arm differ much)",
    )
    running(parser, "print what would be trained and what it costs")


def running(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """How the runs of a comparison or study are trained; ``dry_run`` is that option's help."""
    group = parser.add_argument_group("running")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="runs at a time (default: one a GPU, else one a core)",
    )
    group.add_argument(
        "--keep",
        choices=("models", "results"),
        default="models",
        help="what stays of a finished run: its model and page too, or only its record and "
        "metrics, a hundred kilobytes (default: %(default)s)",
    )
    group.add_argument("--dry-run", action="store_true", help=dry_run)
    group.add_argument(
        "--overwrite", action="store_true", help="delete what is in the folder and start over"
    )
    general(parser, json="the results, or with --dry-run what would be trained,", quiet=True)


def run(args: argparse.Namespace) -> int:
    from patchtrain.analysis.studies.question import BUDGETS, compared
    from patchtrain.errors import UsageError

    asked = args.baseline_budgets
    if args.baseline_rate is not None and asked is None:
        raise UsageError("--baseline-rate is for --baseline-budgets; give these too")
    recipe, about = load(args)
    question = compared(
        recipe,
        args.arms,
        held_equal=args.equal,
        seeds=args.seeds,
        rates=args.rates,
        tuning=args.tuning_seeds,
        budgets=BUDGETS if asked == [] else asked or (),
        budget_rate=args.baseline_rate,
        about=about,
    )
    return carry_out(args, question)


def load(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The recipe, and what is known of its text; sets the folder's default."""
    from patchtrain.analysis.studies.asked import describe
    from patchtrain.data.store import TokenStore
    from patchtrain.recipe import Recipe

    at_least_one(args, "workers")
    recipe = Recipe.load(args.recipe, args.overrides)
    if args.out is None:
        args.out = Path("studies") / f"{getattr(args, 'study', 'compare')}-{Path(args.recipe).stem}"
    store = TokenStore.open(recipe.store)
    return recipe, {"corpus": str(recipe.store), "store": describe(store)}


def carry_out(args: argparse.Namespace, question: Question, search: Search | None = None) -> int:
    """Print what would be trained, or train it and print what came out; the exit code."""
    from patchtrain.analysis.studies.comparison import refuse_another_comparison, run_comparison
    from patchtrain.analysis.studies.estimate import estimate
    from patchtrain.analysis.studies.study import refuse_foreign, refuse_too_many, start_over

    folder = None if args.overwrite else args.out  # None: what it holds does not count
    if folder is None:
        refuse_foreign(args.out)
    else:
        refuse_another_comparison(question, folder, search)
    asked = estimate(question, folder, search.left(folder) if search else 0)
    refuse_too_many(asked["most_runs"])
    if args.dry_run:
        if args.json:
            show_json(asked)
        else:
            print_question(asked)
        return 0
    if args.overwrite:
        start_over(args.out)
    found = run_comparison(
        question,
        args.out,
        args.workers,
        say=say,
        quiet=args.quiet,
        keep=args.keep,
        search=search,
    )
    if args.json:
        show_json(found)
    else:
        print_results(found)
        print(f"results  {args.out / 'results.json'}\npage     {args.out / 'report.html'}")
    return 0 if found["whole"] and not found["unfit"] else 1


def print_arm_table(arms: Sequence[Mapping[str, Any]]) -> None:
    """A line for each of ``estimate.arm_rows``."""
    from patchtrain.report.formats import count, flops
    from patchtrain.report.terminal import print_table

    rows = [
        [
            arm["name"], arm["words"], f"{arm['steps']:,}", count(arm["tokens"]),
            flops(arm["flops"]), "" if arm["off"] is None else f"{arm['off']:+.2%}",
        ]
        for arm in arms
    ]  # fmt: skip
    print_table(["arm", "what it is", "steps", "tokens", "compute", "off"], rows)


def print_question(asked: Mapping[str, Any]) -> None:
    """What ``estimate`` says, in words."""
    from patchtrain.report.formats import duration, flops, seeds_in_words

    print_arm_table(asked["arms"])
    for name, reason in asked["left_out"].items():
        print(f"left out     {name}: {reason}")
    for name, reason in asked["unfit"].items():
        print(f"not trained  {name}: {reason}")
    seeds = seeds_in_words(asked["tuning_seeds"])
    there = f", besides {asked['runs_there']} that are there" if asked["runs_there"] else ""
    print(
        f"at most {asked['most_runs']} runs{there}: "
        f"{asked['first_runs']} to train every arm at each rate with {seeds}, "
        + (f"{asked['trials']} trials, " if asked["trials"] else "")
        + f"the rest for the other seeds{' and the budgets' * bool(asked['budgets'])}; "
        f"{flops(asked['flops'])} in all, equal {asked['held_equal']} a run"
    )
    if asked["seconds_left"] is None:
        print("how long that takes is not known until a run has finished in the folder")
    else:
        left = duration(asked["seconds_left"])
        print(f"at most {left}, one at a time, at the pace of the finished runs")


def print_results(found: Mapping[str, Any]) -> None:
    """The verdict, the tables, and what is missing."""
    from patchtrain.report.compare_words import (
        CONTENDER_HEAD,
        LOSS_HEAD,
        contender_rows,
        held,
        loss_rows,
        lost_notes,
        verdict,
    )
    from patchtrain.report.terminal import print_table

    for sentence in verdict(found):
        print(sentence)
    print_table(CONTENDER_HEAD, contender_rows(found))
    if rows := loss_rows(found):
        print("At equal loss: compute over what token level needs for the same loss")
        print_table(LOSS_HEAD, rows)
    print(" ".join(held(found)))
    for line in lost_notes(found):
        print(line)


def say(line: str) -> None:
    """What begins, ends or fails, as it does."""
    print(f"* {line}", file=sys.stderr, flush=True)
