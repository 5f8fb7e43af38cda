"""Measure how well a model predicts text: bits per byte, perplexity per token and per word.

RUN is a run folder, or with --text any plain Hugging Face model folder.

  patchtrain eval runs/small                        the validation split of the run's store
  patchtrain eval runs/small --text book.txt more.jsonl.zst
  patchtrain eval my-gpt2/ --text test.parquet --text-column content --stride 512
  patchtrain eval runs/small --inside               neurons, embeddings, loss by slot

A text longer than the context is read in windows that start --stride tokens apart; every token is
scored once. A smaller stride gives each token more context, a lower loss, and costs more time: name
both numbers when you compare. The result goes to RUN/evaluation.json, which the report shows."""

from __future__ import annotations

import argparse
from typing import Any

from patchtrain.cli import eval_inside, eval_text, results

HELP = "measure how good a model is"

# What can be measured, each with the options it adds to the command. All but the first are asked
# for by an option of theirs; the first is what is measured when none is.
PARTS: tuple[Any, ...] = (eval_text, eval_inside)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    for part in PARTS:
        part.add_arguments(parser)
    results.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    asked = [part for part in PARTS[1:] if part.asked(args)] or [eval_text]
    for part in asked:
        part.run(args)
    return 0
