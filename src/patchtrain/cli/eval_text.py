"""``patchtrain eval`` without other options: perplexity and bits per byte on text."""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path
from typing import Any

from patchtrain.cli import results
from patchtrain.errors import PatchtrainError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to score and in which windows."""
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="score these documents instead (text, JSON lines or Parquet, also .gz, .xz, .zst)",
    )
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="default: %(default)s"
    )
    parser.add_argument(
        "--format", choices=("text", "jsonl", "parquet"), help="default: by the files' names"
    )
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="a token store with the same tokenizer (default: the run's)",
    )
    parser.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="positions the model sees at most (default: as in training)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="new tokens a window (default: the context length; smaller: more context, more time)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="windows, or answers of tasks, at a time (default: by memory)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="score only the first N tokens")
    parser.add_argument(
        "--name", help="name of the result (default: validation, or the first file's name)"
    )


def run(args: argparse.Namespace) -> None:
    """Score and keep it.

    Raises:
        UsageError: nothing to score, or what does not fit the model.
        PatchtrainError: the model's loss is no number.
    """
    name = _name(args)
    if args.text and args.store:
        raise UsageError("--text and --store both say what to score: give one")

    from patchtrain.evaluation import evaluate
    from patchtrain.evaluation.loading import find_model, load_model

    _, run_folder = find_model(args.run_folder)
    if run_folder is None and not (args.text or args.store):
        raise UsageError(
            f"{args.run_folder} is a model without a run: say what to score, --text FILE"
        )
    file = results.place(run_folder, args.out)
    loaded = load_model(args.run_folder)
    window = evaluate.choose_window(loaded, args.context_length, args.stride)
    begun = time.monotonic()
    if args.text:
        with results.progress(None) as advance:
            loss, documents = evaluate.evaluate_text(
                loaded,
                args.text,
                window,
                args.text_column,
                args.format,
                args.batch_size,
                args.max_tokens,
                advance,
            )
        number = "1 document" if documents == 1 else f"{documents:,} documents"
        scored = f"{number} of {', '.join(args.text)}, each on its own after a start token"
    else:
        from patchtrain.data.store import TokenStore

        store = TokenStore.open(args.store) if args.store else evaluate.open_run_store(loaded)
        tokens = len(store.validation.tokens)
        total = min(tokens, args.max_tokens or tokens)
        with results.progress(total) as advance:
            loss = evaluate.evaluate_store(
                loaded, store, window, args.batch_size, args.max_tokens, advance
            )
        part = f"the first {total:,} of {tokens:,} tokens of " if total < tokens else ""
        mixed = evaluate.read_documents_as(loaded) == "mixed"
        how = "as one stream" if mixed else "each document on its own"
        scored = f"{part}the validation split of {store.path}, {how}"
    if not math.isfinite(loss.nats):
        raise PatchtrainError(f"the loss of {args.run_folder} is {loss.nats}: the model is broken")

    result = {
        "name": name,
        **loss.to_dict(),
        "context_length": window.context_length,
        "stride": window.stride,
        "scored": scored,
        "max_tokens": args.max_tokens,
        "model": {"path": str(loaded.path), "class": type(loaded.model).__name__},
        "device": str(loaded.model.device),
        **results.provenance(begun),
    }
    if args.json:
        results.show_json(result)
    else:
        _show(args.run_folder, loss, result)
    results.keep(file, "text", name, result, quiet=args.json)


def _name(args: argparse.Namespace) -> str:
    name = args.name
    if name is None:
        name = re.sub(r"[^\w.-]+", "-", Path(args.text[0]).name) if args.text else "validation"
    return results.checked_name(name)


def _show(run_folder: str, loss: Any, result: dict[str, Any]) -> None:
    words = f", {loss.word_perplexity:,.2f} per word" if loss.words else ""
    lines = [
        ("bits per byte", f"{loss.bits_per_byte:.4f}"),
        ("perplexity", f"{loss.perplexity:,.2f} per token{words}"),
        ("loss", f"{loss.loss:.4f} nats per token"),
        ("scored", result["scored"]),
        ("", f"{loss.targets:,} tokens, {loss.words:,} words, {loss.utf8_bytes:,} bytes"),
        ("window", f"context length {result['context_length']}, stride {result['stride']}"),
    ]
    print(run_folder)
    for label, value in lines:
        print(f"  {label:14}{value}")
