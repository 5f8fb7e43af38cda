"""Let a trained model continue a prompt; the text appears as it is generated.

examples:
  patchtrain generate runs/small "The cat"
  patchtrain generate runs/small "The cat" --num-samples 3 --temperature 0.7 --stop "."
  echo "The cat" | patchtrain generate runs/small -
  patchtrain generate runs/small --prompts prompts.txt --batch-size 16 --json
  patchtrain generate runs/small "The cat" --stage 1
  patchtrain generate runs/small-sft "What is a cat?" --chat

RUN is a run folder, or any plain Hugging Face model folder. Prompt and completion share the context
the model was trained with: a prompt too long for that is cut at its beginning. The same seed and
batch size give the same text."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli import sampling as sampling_options
from patchtrain.cli.parser import at_least_one, general
from patchtrain.cli.results import show_json_line
from patchtrain.errors import UsageError, warning_line

if TYPE_CHECKING:
    from patchtrain.evaluation.generate import Completion, Sampling
    from patchtrain.evaluation.loading import LoadedModel

HELP = "let a trained model continue a prompt"

DEFAULT_NEW_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="text to continue; - reads stdin"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="many prompts: one a line, or JSON lines with a key prompt; - reads stdin",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="prompts at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"tokens to generate (default: {DEFAULT_NEW_TOKENS}, at most half the context)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="completions of each prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--num-beams", type=int, default=1, metavar="N", help="beam search (default: off)"
    )
    parser.add_argument(
        "--stage", type=int, metavar="N", help="the model as it was at the end of stage N"
    )
    parser.add_argument(
        "--chat", action="store_true", help="PROMPT is a question: only the answer is printed"
    )
    sampling_options.add_arguments(parser)
    general(parser, json="each text, an object a line,", quiet=True)


def run(args: argparse.Namespace) -> int:
    _check(args)
    prompts = _prompts(args)

    import torch

    from patchtrain import chat
    from patchtrain.evaluation.generate import encode_prompt
    from patchtrain.evaluation.loading import find_stage, load_model

    loaded = load_model(find_stage(args.run_folder, args.stage))
    sampling = sampling_options.choose(args, loaded.model, args.num_beams)
    new_tokens = sampling_options.new_tokens(args, loaded.context_length, DEFAULT_NEW_TOKENS)
    asked, ends = prompts, None
    if args.chat:
        chat.use_template(loaded.tokenizer)
        ends = chat.stop_ids(loaded.model, loaded.tokenizer)
        asked = [
            chat.render(
                loaded.tokenizer, [{"role": "user", "content": text}], "PROMPT", prompt=True
            )
            for text in prompts
        ]
    rows, cuts = [], []
    for number, text in enumerate(asked, 1):
        ids, cut = encode_prompt(
            loaded.tokenizer, text, new_tokens, loaded.context_length, whole=args.chat
        )
        if cut:
            which = "the prompt" if len(asked) == 1 else f"prompt {number}"
            said = (
                f"{which} has {len(ids) + cut} tokens; its first {cut} were dropped so that it "
                f"fits a context of {loaded.context_length} with {new_tokens} new tokens"
            )
            print(warning_line(said), file=sys.stderr)
        rows.append(ids)
        cuts.append(cut)
    torch.manual_seed(args.seed)
    begun, written = time.perf_counter(), 0
    for row, sample, found in _write(args, loaded, rows, new_tokens, sampling, ends):
        written += found.tokens
        if args.json:
            told: dict[str, Any] = {"prompt": prompts[row], "completion": found.text}
            if args.num_samples > 1:
                told["sample"] = sample
            told |= {
                "finish_reason": found.finish_reason,
                "prompt_tokens": len(rows[row]),
                "prompt_cut": cuts[row],
                "tokens": found.tokens,
            }
            show_json_line(told)
    if not args.quiet:
        seconds = time.perf_counter() - begun
        print(
            f"{written:,} tokens in {seconds:.2f} s, {written / seconds:,.1f} a second",
            file=sys.stderr,
        )
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.prompt is not None and args.prompts is not None:
        raise UsageError("PROMPT and --prompts both say what to continue: give one")
    at_least_one(args, "num_samples", "batch_size", "num_beams")
    if args.num_beams > 1 and args.num_samples > args.num_beams:
        raise UsageError(
            f"{args.num_beams} beams give at most {args.num_beams} texts; ask for no more "
            f"--num-samples, or for more --num-beams"
        )
    if args.greedy and args.num_samples > 1 and args.num_beams == 1:
        raise UsageError("--greedy gives one text, always the same: leave --num-samples out")
    sampling_options.check(args, args.num_beams)


def _prompts(args: argparse.Namespace) -> list[str]:
    if args.prompts is None:
        if args.prompt == "-":
            return [sys.stdin.read().removesuffix("\n")]
        return [args.prompt or ""]
    if args.prompts == "-":
        where, text = "standard input", sys.stdin.read()
    else:
        where, file = args.prompts, Path(args.prompts)
        if not file.is_file():
            raise UsageError(f"no file of prompts at {file}")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not UTF-8 text: {error.reason}") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"there are no prompts in {where}")
    if not str(where).endswith(("json", "jsonl")):
        return lines
    return [_prompt_of(line, f"{where}: line {number}") for number, line in enumerate(lines, 1)]


def _prompt_of(line: str, where: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError, RecursionError):
        prompt = None
    if not isinstance(prompt, str):
        raise UsageError(f'{where} is no JSON object with a text "prompt"')
    return prompt


def _write(
    args: argparse.Namespace,
    loaded: LoadedModel,
    rows: list[list[int]],
    new_tokens: int,
    sampling: Sampling,
    ends: list[int] | None,
) -> Iterator[tuple[int, int, Completion]]:
    """Every text as it is done; printed as it is written where it is to be read by a person."""
    from patchtrain.evaluation.generate import (
        Streamed,
        completion,
        continue_prompts,
        continue_rows,
    )

    model, tokenizer = loaded.model, loaded.tokenizer
    if args.json or args.batch_size > 1 or args.num_beams > 1:
        for row, sample, found in continue_prompts(
            model, tokenizer, rows, new_tokens, sampling, ends, args.num_samples, args.batch_size
        ):
            if not args.json:
                prompt = "" if args.chat else tokenizer.decode(rows[row], skip_special_tokens=True)
                print(f"{_heading(args, rows, row, sample)}{prompt}{found.text}", flush=True)
            yield row, sample, found
        return

    def show(text: str) -> None:
        print(text, end="", flush=True)

    for row, ids in enumerate(rows):
        for sample in range(args.num_samples):
            show(_heading(args, rows, row, sample))
            streamer = Streamed(tokenizer, show, not args.chat, sampling.stop)
            (new,) = continue_rows(
                model, tokenizer, [ids], new_tokens, sampling, ends, streamer=streamer
            )
            print(flush=True)
            yield row, sample, completion(tokenizer, ids, new, sampling, ends)


def _heading(args: argparse.Namespace, rows: list[list[int]], row: int, sample: int) -> str:
    of_sample = f"{sample + 1} of {args.num_samples}"
    if len(rows) == 1:
        return f"--- {of_sample} ---\n" if args.num_samples > 1 else ""
    samples = f", {of_sample}" if args.num_samples > 1 else ""
    return f"--- prompt {row + 1} of {len(rows)}{samples} ---\n"
