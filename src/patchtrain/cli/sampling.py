"""The options of the commands that let a model write, ``generate`` and ``chat``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from patchtrain.cli.parser import at_least_one
from patchtrain.errors import UsageError

if TYPE_CHECKING:
    from patchtrain.evaluation.generate import Sampling

_CHANCE = ("temperature", "top_p", "top_k", "min_p")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How the next token is chosen, with the names of transformers' ``GenerationConfig``."""
    group = parser.add_argument_group(
        "sampling",
        "What is left out is the model's own choice (generation_config.json), else the default "
        "of transformers.",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help="below 1 nearer to the likeliest, above it more random (default: 1.0)",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K likeliest (default: 50; 0: all)"
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest tokens that together have this probability (default: 1.0)",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="leave out tokens less likely than P times the likeliest (default: off)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="divide the logits of tokens that were there already (default: 1.0, none)",
    )
    group.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; can be given several times",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)"
    )


def check(args: argparse.Namespace, num_beams: int = 1) -> None:
    """Refuse impossible values before a model is loaded.

    Raises:
        UsageError: naming the option.
    """
    from patchtrain.evaluation.generate import Sampling

    given = [name for name in _CHANCE if getattr(args, name) is not None]
    if given and (args.greedy or num_beams > 1):
        option = "--greedy" if args.greedy else "--num-beams"
        raise UsageError(
            f"{option} leaves nothing to chance, so --{given[0].replace('_', '-')} does nothing; "
            f"give one of the two"
        )
    at_least_one(args, "max_new_tokens")
    if not 0 <= args.seed < 2**63:
        raise UsageError(f"--seed must be from 0 to 2^63 - 1, not {args.seed}")
    Sampling.of(None, **_given(args), num_beams=num_beams)


def choose(args: argparse.Namespace, model: Any, num_beams: int = 1) -> Sampling:
    """The sampling asked for, on this model."""
    from patchtrain.evaluation.generate import Sampling

    return Sampling.of(model, **_given(args), num_beams=num_beams)


def new_tokens(args: argparse.Namespace, context_length: int | None, default: int) -> int:
    """How many tokens to write at most: as asked for, or the default within half the context."""
    if args.max_new_tokens is not None:
        return int(args.max_new_tokens)
    return max(1, min(default, context_length // 2)) if context_length else default


def _given(args: argparse.Namespace) -> dict[str, Any]:
    names = (*_CHANCE, "repetition_penalty", "greedy")
    return {name: getattr(args, name) for name in names} | {"stop": tuple(args.stop)}
