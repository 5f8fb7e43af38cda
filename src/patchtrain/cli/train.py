"""Train a recipe: one YAML file is one run, through all its stages.

examples:
  patchtrain train recipes/small.yaml
  patchtrain train recipes/small.yaml plan.patch_size=2 out=runs/k2
  patchtrain train recipes/small.yaml --dry-run
  patchtrain train recipes/small.yaml --resume
  torchrun --nproc_per_node 8 -m patchtrain train recipes/small.yaml

The run folder (by default runs/NAME) holds the exported plain model, the metrics, the resolved
recipe and report.html. Any entry of the recipe can be replaced on the command line.

A run that ended early, for whatever reason, goes on from its newest whole checkpoint with --resume.
SIGTERM and SIGINT (Ctrl-C) finish the step, save and exit with 143 or 130; a second one ends the
run at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from patchtrain.cli.parser import general

if TYPE_CHECKING:
    from patchtrain.runs import RunFolder
    from patchtrain.training.run import Prepared

_RESUME = ("auto", "yes", "no")
HELP = "train a recipe, through all stages, to a plain model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe, a YAML file")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="entries of the recipe to replace, such as plan.patch_size=2",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved plan with its cost and an estimate of the time; train nothing",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        metavar="auto",
        help="go on with the run in its folder; --resume=auto begins where there is none yet, and "
        "is the default where Slurm or torchrun starts a run again",
    )
    parser.add_argument(
        "--allow-change",
        metavar="NAMES",
        default="",
        help="what may differ from the run so far, separated by commas: learning_rate, logging "
        "(how often to log, evaluate, save), processes (their number); all else is refused",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    general(parser, json="what the run ended at, or with --dry-run the plan,", quiet=True)


def explicit(words: list[str]) -> list[str]:
    """The command's words with ``--resume`` as ``--resume=yes``: argparse would take the next."""
    following = [*words[1:], ""]
    return [
        "--resume=yes" if word == "--resume" and after not in _RESUME else word
        for word, after in zip(words, following, strict=True)
    ]


def run(args: argparse.Namespace) -> int:
    from patchtrain.errors import UsageError
    from patchtrain.recipe import Recipe

    if args.resume not in (None, *_RESUME):
        raise UsageError(f"--resume takes auto, yes or no, not '{args.resume}'")
    recipe = Recipe.load(args.recipe, args.overrides)
    from patchtrain.training import run as runs  # after the recipe's own errors: this takes seconds
    from patchtrain.training.processes import is_first_process, part, restarted

    if args.dry_run:
        recipe.training["push_to_hub"] = False  # which makes a repository at once
        prepared = runs.prepare_run(recipe)
        if is_first_process():
            if args.json:
                from patchtrain.cli.results import show_json

                show_json(plan_summary(prepared))
            else:
                print_plan(prepared)
        part()
        return 0
    if restarted() and args.resume is None:
        args.overwrite, args.resume = False, "auto"  # it was for the first start
    resume = args.resume or "no"
    changes = [name for name in args.allow_change.split(",") if name]
    folder = runs.run_recipe(recipe, args.overwrite, args.quiet, resume, changes)
    if is_first_process():
        if args.json:
            from patchtrain.cli.results import run_result, show_json

            show_json(run_result(folder))
        else:
            _print_result(folder, str(recipe.out))
    part()
    return 0


def plan_summary(prepared: Prepared) -> dict[str, Any]:
    """What ``--dry-run`` says, for a program; ``seconds`` is None where it is not estimated."""
    from patchtrain.training.run import describe_store, documents_line, estimate_seconds

    plan, trainer = prepared.plan, prepared.trainer
    return {
        "folder": str(prepared.recipe.out),
        "model": {"class": type(trainer.model).__name__, **trainer.size.to_dict()},
        "store": describe_store(prepared.store),
        "plan": trainer.size.plan_dict(plan),
        "flops": trainer.size.flops(plan).total,
        "learning_rate": trainer.args.learning_rate,
        "documents": documents_line(trainer),
        "loss_backend": str(trainer.backend),
        "seconds": estimate_seconds(prepared),
        "warnings": prepared.warnings(),
    }


def print_plan(prepared: Prepared) -> None:
    """The resolved plan as a table, what it costs, and how long it would take here."""
    from patchtrain.patch_settings import used
    from patchtrain.progress import clock
    from patchtrain.report.formats import count, flops, percent
    from patchtrain.report.terminal import console, print_table
    from patchtrain.training.run import documents_line, estimate_seconds

    plan, trainer, store = prepared.plan, prepared.trainer, prepared.store
    head = ("stage", "steps", "passes/step", "tokens/step", "tokens", "positions", "compute")
    size, spec, out = trainer.size, plan.spec, console()
    total = size.flops(plan).total
    rows = [
        [
            f"{stage.index + 1} {stage.named(plan.context_length)}",
            f"{stage.steps:,}",
            f"{plan.passes(stage)} x {plan.pass_rows(stage)}",
            f"{stage.tokens_per_step:,}",
            f"{stage.tokens:,}",
            f"{stage.positions:,}",
            percent(size.flops_of_stage(stage, stage.steps).total / total),
        ]
        for stage in plan.stages
    ]
    print_table(head, rows)
    seconds = estimate_seconds(prepared)
    scope = "each stage" if spec.schedule_scope == "stage" else "the run"
    lines = [
        ("model", f"{type(trainer.model).__name__}, {count(size.parameters)} parameters, "
                  f"{count(size.body_parameters)} of them in the body"),
        ("data", f"{store.path}: {plan.total_tokens:,} of {len(trainer.batches.tokens):,} "
                 f"training tokens, {plan.epochs:.2f} epochs"),
        ("documents", documents_line(trainer).removeprefix("documents: ")),
        ("schedule", f"{spec.schedule} over {scope}, "
                     f"peak rate {trainer.args.learning_rate:g}; "
                     f"optimizer state at a switch: {spec.optimizer_at_switch}"),
        ("settings", ", ".join(f"{name} {value}" for name, value in used(spec).items())
                     or "none beyond the preset's"),
        ("steps", f"{plan.total_steps:,}, context length {plan.context_length}, "
                  f"{plan.processes} process{'es' if plan.processes > 1 else ''}"),
        ("compute", f"{flops(total)}, {size.ratio_at_equal_data(plan):.3f} of token-level "
                    f"training on the same tokens"),
        ("patch loss", str(trainer.backend)),
        ("time", f"about {clock(seconds)} on this machine, evaluation aside (from a few timed "
                 f"passes)" if seconds is not None else
                 "not estimated: one pass of this model would take too long on a CPU"),
        ("run folder", str(prepared.recipe.out)),
    ]  # fmt: skip
    lines += [("warning", text) for text in prepared.warnings()]
    for name, text in lines:
        out.print(f"  {name:<11}{text}", soft_wrap=True)


def _print_result(folder: RunFolder, out: str) -> None:
    from patchtrain.model_folder import has_tokenizer
    from patchtrain.report.curve import warnings
    from patchtrain.report.formats import number
    from patchtrain.report.summary import RunSummary

    info = folder.info()
    result, plan = info["result"], info["plan"]
    print(
        f"trained {plan['total_tokens']:,} tokens in {info['seconds']:.0f} s, "
        f"at {plan['compute_ratio']:.3f} of what token-level training on them costs"
    )
    if result:
        print(
            f"all validation text: {number(result['loss'], 4)} nats a token, perplexity "
            f"{number(result['perplexity'], 2)}, {number(result['bits_per_byte'], 4)} bits per byte"
        )
    for text in warnings(RunSummary.read(folder)):
        print(f"warning: {text}")
    print(f"model       {out}/model\npage        {out}/report.html")
    if has_tokenizer(folder.model):
        print(f'try it      patchtrain generate {out} "..."')
