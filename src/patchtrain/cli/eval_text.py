"""``patchtrain eval`` without other options: perplexity and bits per byte on text."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli import results
from patchtrain.cli.parser import reading
from patchtrain.errors import PatchtrainError, UsageError

if TYPE_CHECKING:
    from patchtrain.data.store import TokenStore
    from patchtrain.evaluation.evaluate import Measured, Window
    from patchtrain.evaluation.loading import LoadedModel
    from patchtrain.runs import RunFolder

# How documents are read, in words, of a store and of other text.
_READ = {
    "separate": ("each document on its own", "each on its own after a start token"),
    "mixed": ("as one stream", "as one stream"),
    "blocks": ("as one stream cut in blocks, each on its own",) * 2,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to score and in which windows."""
    group = parser.add_argument_group("text")
    group.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="score these documents instead (text, JSON lines or Parquet, also .gz, .xz, .zst)",
    )
    reading(group)
    group.add_argument(
        "--store",
        metavar="STORE",
        help="a token store with the same tokenizer (default: the run's)",
    )
    group.add_argument(
        "--documents",
        choices=tuple(_READ),
        help="how documents are read: each on its own; mixed, as one stream; or in blocks of the "
        "context length, as the paper's code does for WikiText-103 (default: a run's store as in "
        "training, other text separate)",
    )
    group.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="positions the model sees at most (default: as in training)",
    )
    group.add_argument(
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
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N documents of each task, prompts or questions",
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="score only the first N tokens")
    group.add_argument(
        "--final-only",
        action="store_true",
        help="leave out the models that a run kept at the ends of its earlier stages, which are "
        "otherwise scored on the same text, to say what the token-level stage did",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="name of the result (default: validation, or the first file's name)",
    )


def run(args: argparse.Namespace) -> Iterator[results.Named]:
    """Score and keep it.

    Raises:
        UsageError: nothing to score, or what does not fit the model.
        PatchtrainError: the model's loss is no number.
    """
    name = _name(args)
    if args.text and args.store:
        raise UsageError("--text and --store both say what to score: give one")
    if args.documents == "blocks" and args.stride is not None:
        raise UsageError("--documents blocks do not overlap, so leave --stride out")

    from patchtrain.data.store import TokenStore
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
    documents, store = args.documents or "separate", None
    if not args.text:
        documents = args.documents or evaluate.read_documents_as(loaded)
        store = TokenStore.open(args.store) if args.store else evaluate.open_run_store(loaded)
    begun = time.monotonic()
    found = _score(loaded, args, window, documents, store)
    stages = []
    if run_folder is not None and not args.final_only:
        for number, folder in run_folder.stage_models().items():
            told = {"stage": number, "patch_size": _patch_size(run_folder, number)}
            earlier = _score(load_model(folder), args, window, documents, store)
            stages.append({**told, **earlier.to_dict()})
    result = {
        "name": name,
        **found.to_dict(),
        "stages": stages,
        "context_length": window.context_length,
        "stride": window.stride,
        "documents": documents,
        "scored": _scored(args, found, documents, store),
        "max_tokens": args.max_tokens,
        "model": {"path": str(loaded.path), "class": type(loaded.model).__name__},
        "device": str(loaded.model.device),
        **results.provenance(begun),
    }
    if not args.json:
        _show(args.run_folder, result)
    results.keep(file, "text", name, result, quiet=args.json)
    yield "text", name, result


def _score(
    loaded: LoadedModel,
    args: argparse.Namespace,
    window: Window,
    documents: str,
    store: TokenStore | None,
) -> Measured:
    """The loss of one model on the store's validation split, or on the files."""
    from patchtrain.evaluation import evaluate

    if store is None:
        with results.progress(None, quiet=args.quiet) as advance:
            found = evaluate.evaluate_text(
                loaded,
                args.text,
                window,
                documents,
                args.text_column,
                args.format,
                args.batch_size,
                args.max_tokens,
                advance,
            )
    else:
        tokens = len(store.validation.tokens)
        total = min(tokens, args.max_tokens or tokens)
        with results.progress(total, quiet=args.quiet) as advance:
            found = evaluate.evaluate_store(
                loaded, store, window, documents, args.batch_size, args.max_tokens, advance
            )
    if not math.isfinite(found.loss.nats):
        raise PatchtrainError(
            f"the loss of {loaded.path} is {found.loss.nats}: the model is broken"
        )
    return found


def _patch_size(run: RunFolder, number: int) -> int | None:
    """K of a run's stage, None if its plan does not say."""
    stages = run.part("plan").get("stages")
    stage = stages[number - 1] if isinstance(stages, list) and number <= len(stages) else None
    size = stage.get("patch_size") if isinstance(stage, dict) else None
    return size if isinstance(size, int) else None


def _scored(
    args: argparse.Namespace, found: Measured, documents: str, store: TokenStore | None
) -> str:
    """What was scored and how it was read, in words."""
    if store is None:
        number = found.tally.documents
        count = "1 document" if number == 1 else f"{number:,} documents"
        return f"{count} of {', '.join(args.text)}, {_READ[documents][1]}"
    tokens = len(store.validation.tokens)
    total = min(tokens, args.max_tokens or tokens)
    part = f"the first {total:,} of {tokens:,} tokens of " if total < tokens else ""
    return f"{part}the validation split of {store.path}, {_READ[documents][0]}"


def _name(args: argparse.Namespace) -> str:
    name = args.name
    if name is None:
        name = re.sub(r"[^\w.-]+", "-", Path(args.text[0]).name) if args.text else "validation"
    return results.checked_name(name)


def _show(run_folder: str, result: dict[str, Any]) -> None:
    per_word = result["word_perplexity"]
    words = f", {per_word:,.2f} per word" if per_word is not None else ""
    lines = [
        ("bits per byte", _number(result["bits_per_byte"], 4)),
        ("perplexity", f"{_number(result['perplexity'], 2)} per token{words}"),
        ("loss", f"{result['loss']:.4f} nats per token"),
        ("scored", result["scored"]),
        ("", f"{result['targets']:,} tokens{_text_size(result)}"),
        ("window", f"context length {result['context_length']}, stride {result['stride']}"),
        *_before(result),
        *_positions(result["by_position"]),
        *_documents(result["by_document"]),
    ]
    print(run_folder)
    for label, value in lines:
        print(f"  {label:14}{value}")


def _text_size(result: dict[str, Any]) -> str:
    if not result["utf8_bytes"]:  # the store does not know the text of its tokens
        return ""
    return f", {result['words']:,} words, {result['utf8_bytes']:,} bytes"


def _before(result: dict[str, Any]) -> list[tuple[str, str]]:
    """How the models at the ends of the earlier stages do, and the last one against them."""
    lines = []
    for stage in result["stages"]:
        label = f"after stage {stage['stage']}"
        K = stage["patch_size"]
        patches = f" (patches of {K}, read token by token)" if K and K > 1 else ""
        change = _change(result["bits_per_byte"], stage["bits_per_byte"])
        lines += [
            (
                label,
                f"{_number(stage['bits_per_byte'], 4)} bits per byte, perplexity "
                f"{_number(stage['perplexity'], 2)}, loss {stage['loss']:.4f}"
                f"{patches}",
            ),
            ("", f"from there to the end {change}"),
        ]
    return lines


def _change(now: float | None, before: float | None) -> str:
    if now is None or before is None:
        return "unknown"
    return f"{now - before:+z.4f} bits per byte"


def _positions(bins: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The loss by tokens of context, some bins a line."""
    cells = [
        f"{b['from']}{'' if b['from'] == b['to'] else '-' + str(b['to'])}: {b['loss']:.3f}"
        for b in bins
    ]
    lines = [", ".join(cells[i : i + 6]) for i in range(0, len(cells), 6)]
    return [("" if number else "by context", line) for number, line in enumerate(lines)]


def _documents(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Bits per byte of single documents; nothing where there is but one."""
    if found["documents"] < 2:
        return []
    quantiles, best, worst = found["quantiles"], found["best"][0], found["worst"][0]
    return [
        (
            "by document",
            f"{found['documents']:,} documents: mean {found['mean']:.4f} bits per byte, the middle "
            f"half {quantiles['0.25']:.4f} to {quantiles['0.75']:.4f}",
        ),
        (
            "",
            f"best {best['bits_per_byte']:.4f} (document {best['document']:,}), worst "
            f"{worst['bits_per_byte']:.4f} (document {worst['document']:,}, counted from 0)",
        ),
    ]


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:,.{digits}f}"
