"""Train several small models side by side and say what differs, with seeds and intervals.

examples:
  patchtrain study ablation --out studies/ablation
  patchtrain study ablation recipes/small.yaml --out studies/ablation --seeds 0 1 2
  patchtrain study tokenizers corpus/ --out studies/tokenizers --tokenizer mistral=tokenizer.json
  patchtrain study sweep recipes/small.yaml --over K=2,4,8 --over r=0.2,0.3,0.5 --dry-run

All arms cost the same compute. One process a GPU trains them, without a GPU one a core; Ctrl-C
leaves a folder that the same command goes on with, and more seeds may be asked for later.
OUT/report.html is the page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli import sweep
from patchtrain.cli.compare import print_arm_table, running, say
from patchtrain.cli.parser import at_least_one
from patchtrain.cli.results import show_json

if TYPE_CHECKING:
    from patchtrain.analysis.studies.study import Study

HELP = "compare small models over seeds: ablations of the patch, tokenizers, sweeps"
_RECIPES = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="studies", dest="study", metavar="STUDY", required=True)
    ablation = kinds.add_parser(
        "ablation",
        help="take one part of a patch away at a time",
        doc=_ABLATION,
    )
    _common(ablation, "[RECIPE | CORPUS] [key=value ...]")
    tokenizers = kinds.add_parser(
        "tokenizers",
        help="one corpus under several tokenizers",
        doc=_TOKENIZERS,
    )
    _common(tokenizers, "[CORPUS ...] [key=value ...]")
    tokenizers.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="one more tokenizer: a tokenizer.json, a folder or a Hugging Face name; may be given "
        "several times",
    )
    tokenizers.add_argument(
        "--vocab-size",
        type=int,
        default=1024,
        metavar="N",
        help="entries of the bpe and unigram tokenizers (default: %(default)s)",
    )
    sweep.add(kinds)


_ABLATION = """Take one part of a patch away at a time, at equal compute: what a patch does.

examples:
  patchtrain study ablation --out studies/ablation --dry-run
  patchtrain study ablation recipes/small.yaml --out studies/ablation
  patchtrain study ablation my-text/ --out studies/mine --steps 8000 --seeds 0 1 2
  patchtrain study ablation plan.patch_size=2 training.learning_rate=4e-3 --out studies/k2

Give a recipe with a model to train from scratch and a plan of patches, then tokens; or a corpus
(as for prepare), which a small model is then trained on; or nothing, for the Python standard
library's sources. Token level is also trained with the context shortened and extended."""

_TOKENIZERS = """Compare tokenizers on one corpus, each at token level and with patches.

examples:
  patchtrain study tokenizers --out studies/tokenizers --dry-run
  patchtrain study tokenizers my-text/ --out studies/mine --steps 8000 --seeds 0 1 2
  patchtrain study tokenizers corpus/ --out studies/tokenizers --tokenizer mistral=tokenizer.json
  patchtrain study tokenizers plan.patch_size=2 training.learning_rate=4e-3 --out studies/k2

bpe, unigram, char and byte are trained on the corpus; --tokenizer adds others. CORPUS is what
prepare reads; nothing, for the Python standard library's sources. All cost the same compute, and
losses are in bits per byte."""


def _common(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar=words,
        help="what to study on, and entries of the recipe to replace, such as plan.patch_size=2",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="the study's folder")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1],
        metavar="N",
        help="of weights and data order; arms with the same seed are paired (default: 0 1)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="token-level steps that every arm gets the compute of (default: the recipe's)",
    )
    running(parser, "print the arms with what they cost; makes the token stores and trains nothing")


def run(args: argparse.Namespace) -> int:
    if args.study == "sweep":
        return sweep.run(args)
    from patchtrain.analysis.studies.study import claim, start_over

    at_least_one(args, "steps", "workers")
    (start_over if args.overwrite and not args.dry_run else claim)(args.out)
    study = {"ablation": _ablation, "tokenizers": _tokenizers}[args.study](args)
    if args.dry_run:
        arms = arms_summary(study)
        if args.json:
            show_json(arms)
        else:
            print_arms(arms)
        return 0
    from patchtrain.analysis.studies.runner import run_study

    found = run_study(study, args.out, args.workers, say=say, quiet=args.quiet, keep=args.keep)
    if args.json:
        show_json(found)
    else:
        print_results(found)
        print(f"results  {args.out / 'results.json'}\npage     {args.out / 'report.html'}")
    return 1 if found["failed"] else 0


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What to study on, and the ``key=value`` pairs."""
    pair = re.compile(r"[a-z_]+(\.\w+)*=")
    pairs = [word for word in words if pair.match(word) and not Path(word).exists()]
    return [word for word in words if word not in pairs], pairs


def _ablation(args: argparse.Namespace) -> Study:
    from patchtrain.analysis.studies import asked
    from patchtrain.analysis.studies.ablation import ablation_study
    from patchtrain.data.store import TokenStore

    inputs, overrides = _split(args.overrides)
    if len(inputs) == 1 and Path(inputs[0]).suffix in _RECIPES:
        from patchtrain.recipe import Recipe

        recipe = Recipe.load(inputs[0], overrides)
        values = recipe.model_dump(mode="json", exclude_none=True)
        where, corpus = inputs[0], str(recipe.store)
        store = TokenStore.open(recipe.store)
    else:
        sources = inputs or [asked.CORPUS]
        where, corpus = "the study's recipe", ", ".join(sources)
        path = args.out / "stores" / "text"
        store = asked.corpus_store(
            sources, path, **asked.small_tokenizer(), progress=not args.quiet
        )
        values = asked.small_recipe("ablation", overrides, str(path))
    base = asked.base(values, where, args.steps)
    return ablation_study(base, args.seeds, {"corpus": corpus, "store": asked.describe(store)})


def _tokenizers(args: argparse.Namespace) -> Study:
    from patchtrain.analysis.studies import asked
    from patchtrain.analysis.studies.tokenizers import Tokenized, tokenizer_study
    from patchtrain.data.tokenizer import KINDS

    inputs, overrides = _split(args.overrides)
    sources = inputs or [asked.CORPUS]
    named = _named(args.tokenizer)
    progress = not args.quiet
    corpora = []
    for kind in KINDS:  # the first is what the others are compared with
        size = args.vocab_size if kind in ("bpe", "unigram") else None
        path = args.out / "stores" / kind
        store = asked.corpus_store(sources, path, kind=kind, vocab_size=size, progress=progress)
        corpora.append(Tokenized(kind, kind, store))
    for name, file in named.items():
        path = args.out / "stores" / name
        store = asked.corpus_store(sources, path, tokenizer=file, progress=progress)
        corpora.append(Tokenized(name, name, store))
    values = asked.small_recipe("tokenizers", overrides, str(corpora[0].store.path))
    base = asked.base(values, "the study's recipe", args.steps)
    about = {
        "corpus": ", ".join(sources), "vocab_size": args.vocab_size, "tokenizers": named,
    }  # fmt: skip
    return tokenizer_study(base, corpora, args.seeds, about)


def _named(words: Sequence[str]) -> dict[str, str]:
    """``NAME=FILE`` pairs; ``UsageError`` where one is none, or its name is taken."""
    from patchtrain.data.tokenizer import KINDS
    from patchtrain.errors import UsageError

    found: dict[str, str] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or not file or not re.fullmatch(r"\w[\w.-]*", name):
            raise UsageError(f"--tokenizer {word} is not NAME=FILE, such as mine=tokenizer.json")
        if name in KINDS or name in found:
            raise UsageError(f"--tokenizer {word}: the name '{name}' is taken")
        found[name] = file
    return found


def arms_summary(study: Study) -> dict[str, Any]:
    """The arms of a study and what a run of each costs."""
    from patchtrain.analysis.studies.estimate import arm_rows

    arms, seeds = arm_rows(study), len(study.seeds)
    return {
        "arms": arms,
        "seeds": list(study.seeds),
        "runs": len(arms) * seeds,
        "flops": sum(arm["flops"] for arm in arms) * seeds,
        "held_equal": study.held_equal,
    }


def print_arms(found: Mapping[str, Any]) -> None:
    """An ``arms_summary`` in words."""
    from patchtrain.report.formats import flops

    print_arm_table(found["arms"])
    seeds = ", ".join(map(str, found["seeds"]))
    print(
        f"{found['runs']} runs: {len(found['arms'])} arms with seeds {seeds}; "
        f"{flops(found['flops'])} in all, equal {found['held_equal']} a run"
    )


def print_results(found: Mapping[str, Any]) -> None:
    """The study's tables, and what is missing."""
    from patchtrain.report.study_page import (
        ARM_HEAD,
        DIFFERENCE_HEAD,
        arm_rows,
        difference_rows,
        lead,
    )
    from patchtrain.report.terminal import print_table

    print(" ".join(lead(found)))
    print_table(ARM_HEAD, arm_rows(found))
    if rows := difference_rows(found):
        print_table(DIFFERENCE_HEAD, rows)
    for name, reason in found["failed"].items():
        print(f"failed   {name}: {reason}")
