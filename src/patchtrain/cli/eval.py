"""Measure a model: how well it predicts text, answers questions, follows instructions.

examples:
  patchtrain eval runs/small                        # the validation split of the run's store
  patchtrain eval runs/small --text book.txt more.jsonl.zst
  patchtrain eval my-gpt2/ --text test.parquet --text-column content --stride 512
  patchtrain eval runs/small --tasks small,piqa     # zero-shot accuracy on lm-eval's tasks
  patchtrain eval runs/small --inside               # neurons, embeddings, loss by slot
  patchtrain eval runs/small --speed                # what each stage did a second
  patchtrain eval runs/small-sft --answers held_out.jsonl
  patchtrain eval runs/small-sft --ifeval --prompts ifeval_prompts.jsonl
  patchtrain eval runs/small-sft --mt-bench --judge-url http://localhost:8000/v1 --judge-model M

RUN is a run folder, or with --text or --tasks any plain Hugging Face model folder.

Text gives bits per byte and perplexity per token and word. One longer than the context is read in
windows that start --stride tokens apart; every token is scored once. A smaller stride gives each
token more context, a lower loss, and costs more time: name both numbers when you compare. Results
go to RUN/evaluation.json, which the report shows; --json prints them in the same form, by kind and
name."""

from __future__ import annotations

import argparse
from typing import Any

from patchtrain.cli import (
    eval_inside,
    eval_instructions,
    eval_speed,
    eval_tasks,
    eval_text,
    results,
)
from patchtrain.cli.parser import general

HELP = "measure how good a model is"

# What can be measured, each with the options it adds to the command. All but the first are asked
# for by an option of theirs; the first is what is measured when none is.
PARTS: tuple[Any, ...] = (
    eval_text,
    eval_tasks,
    eval_instructions,
    eval_inside,
    eval_speed,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    for part in PARTS:
        part.add_arguments(parser)
    results.add_arguments(parser)
    general(parser, json="what was measured", quiet=True)


def run(args: argparse.Namespace) -> int:
    asked = [part for part in PARTS[1:] if part.asked(args)]
    # What is inside a model is looked at on the text that is named; for the others it is one more.
    if not asked or (eval_inside not in asked and (args.text or args.store)):
        asked.insert(0, eval_text)
    measured: dict[str, dict[str, Any]] = {}
    try:
        for part in asked:
            for kind, name, result in part.run(args):
                measured.setdefault(kind, {})[name] = result
    finally:
        if args.json and measured:  # hours of measuring are not lost to what failed after them
            results.show_json(measured)
    return 0
