"""Which K, fraction, rate, model: points along some axes, each against token level.

examples:
  patchtrain study sweep recipes/small.yaml --over K=2,4,8 --over r=0.2,0.3,0.5 --dry-run
  patchtrain study sweep recipes/small.yaml --over K=2,4,8 --over rate=2e-3,4e-3,8e-3 --seeds 0 1
  patchtrain study sweep recipes/small.yaml --over "stages=[[8,.1],[4,.1],[1,.8]],[[4,.3],[1,.7]]"
  patchtrain study sweep recipes/small.yaml --search bayes --trials 30 --over K=2,4,8 \\
      --over r=0.05..0.5 --over rate=1e-3..1e-2

An axis is any entry of a recipe (plan.optimizer_at_switch=carry,reset, model.config.hidden_size=
64,128, plan.tokens_per_step, plan.tokens), or K, r, lambda or rate for short. The rate is no axis
of the result: every point is taken at its own best. What is no matter of patches alone, such as the
model, has a token-level reference for each of its values. Every point costs what token level costs
at the recipe's length; only an axis over the length itself changes that."""

from __future__ import annotations

import argparse

from patchtrain.cli import compare
from patchtrain.cli.parser import at_least_one

_CONFIRMED = 3
_TRIALS = 20


def add(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command ``study sweep``."""
    parser = kinds.add_parser(
        "sweep",
        help="points along any entries of a recipe, by grid or search",
        doc=__doc__,
    )
    compare.add_common(parser, [0])
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="PATH=VALUES",
        help="an axis: values with commas between, or low..high for a search (in the logarithm "
        "where high is 8 times low or more); several times",
    )
    parser.add_argument(
        "--search",
        choices=("grid", "random", "bayes"),
        default="grid",
        help="all points, or some by optuna (default: %(default)s)",
    )
    parser.add_argument("--trials", type=int, metavar="N", help=f"of a search (default: {_TRIALS})")
    parser.add_argument(
        "--confirm",
        type=int,
        metavar="N",
        help="points that are trained on the other seeds too, those first that gained most over "
        "their token level (default: all of a "
        f"grid, {_CONFIRMED} of a search)",
    )


def run(args: argparse.Namespace) -> int:
    from patchtrain.analysis.studies.search import Search
    from patchtrain.analysis.studies.sweep import grid, searched, swept
    from patchtrain.errors import UsageError

    at_least_one(args, "confirm", "trials")
    recipe, about = compare.load(args)
    is_grid = args.search == "grid"
    if is_grid and args.trials is not None:
        raise UsageError("--trials is of a search: add --search random or --search bayes")
    sweep = swept(
        recipe,
        args.over,
        held_equal=args.equal,
        seeds=args.seeds,
        tuning=args.tuning_seeds,
        confirm=args.confirm or (None if is_grid else _CONFIRMED),
        about=about,
    )
    if is_grid:
        return compare.carry_out(args, grid(sweep))
    search = Search(sweep, args.search, args.trials or _TRIALS)
    return compare.carry_out(args, searched(sweep), search)
