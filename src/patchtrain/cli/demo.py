"""See patch-level training work: about five minutes on two CPU cores, no download.

examples:
  patchtrain demo            # the whole demo; called again, it reuses what is there
  patchtrain demo --quick    # every part in about a minute; the models learn little
  patchtrain demo --quick --overwrite --out my-demo

Takes the Python standard library's own sources as its corpus, trains a tokenizer, and trains the
same small model twice at equal compute: on tokens only, and on patches first, then on tokens.
Then it compares the two on held-out text, lets both complete a prompt, and writes a page with the
curves. Both results are plain Hugging Face models."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from patchtrain.cli.parser import general

if TYPE_CHECKING:
    from patchtrain.demo import DemoResult

HELP = "see it work: two small models at equal compute, in five minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="finish in about a minute")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what is there and start over"
    )
    parser.add_argument(
        "--out",
        default="patchtrain-demo",
        metavar="FOLDER",
        help="for everything (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of weights and data order (default: the one in the README)",
    )
    general(parser, json="what both runs ended at", quiet=True)


def run(args: argparse.Namespace) -> int:
    import shutil
    from pathlib import Path

    from patchtrain.demo import SEED, claim, run_demo

    out = Path(args.out)
    claim(out)
    if args.overwrite:
        shutil.rmtree(out)
    seed = SEED if args.seed is None else args.seed
    result = run_demo(out, quick=args.quick, seed=seed, say=_say, quiet=args.quiet)
    if args.json:
        from patchtrain.cli.results import run_result, show_json

        runs = (result.token_level, result.patch_level)
        show_json({"runs": [run_result(run) for run in runs], "page": str(result.page)})
    else:
        _print_result(result, args.quick)
    return 0


def _say(line: str) -> None:
    print(f"* {line}", flush=True)


def _print_result(result: DemoResult, quick: bool) -> None:
    from patchtrain.report import terminal
    from patchtrain.report.formats import count, flops

    runs = (result.token_level, result.patch_level)
    infos = [run.info() for run in runs]
    head = ("run", "steps", "tokens read", "compute", "time", "validation loss", "perplexity",
            "bits per byte")  # fmt: skip
    rows = []
    for info in infos:
        plan, loss = info["plan"], info["result"]
        rows.append([
            " then ".join(stage["name"] for stage in plan["stages"]),
            f"{plan['total_steps']:,}",
            count(plan["total_tokens"]),
            flops(info["flops"]),
            f"{info['seconds']:.0f} s",
            f"{loss['loss']:.4f}",
            f"{loss['perplexity']:.3f}",
            f"{loss['bits_per_byte']:.4f}",
        ])  # fmt: skip
    terminal.print_table(head, rows)
    console = terminal.console(120)
    token, patch = (info["result"]["loss"] for info in infos)
    size = infos[0]["model"]
    verdict = "below" if patch < token else "above"
    rates = " and ".join(f"{info['learning_rate']:g}" for info in infos)
    console.print(
        f"At equal compute, patches first ended {abs(token - patch):.4f} nats a token {verdict} "
        f"token level only\n(lower is better; one seed, {infos[0]['seed']}; learning rates "
        f"{rates}, the best tried for each; a model of {count(size['parameters'])} parameters)."
    )
    if quick:
        console.print("A quick run is too short to compare the two; the full demo is not.")
    console.print()
    samples = zip(*(run.samples() for run in runs), strict=True)
    for first, second in samples:
        console.print("[bold]prompt[/]           ", end="")
        console.print(repr(first["prompt"]), markup=False)
        for name, sample in (("token level only", first), ("patches first", second)):
            console.print(f"[bold]{name:<17}[/]", end="")
            console.print(repr(sample["completion"]), markup=False, soft_wrap=True)
        console.print()
    folder = result.page.parent
    console.print(f"page    {result.page}\nmodels  {runs[0].model}  {runs[1].model}", markup=False)
    console.print(
        f'next    patchtrain generate {runs[1].path} "def main("\n'
        f"        patchtrain eval {runs[1].path}\n"
        f"        patchtrain prepare YOUR-TEXT --out {folder.parent / 'stores' / 'text'}",
        markup=False,
    )
