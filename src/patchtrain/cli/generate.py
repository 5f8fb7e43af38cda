"""Let a trained model continue a prompt; the text appears as it is generated.

examples:
  patchtrain generate runs/small "The cat"
  patchtrain generate runs/small "The cat" --samples 3 --temperature 0.7
  echo "The cat" | patchtrain generate runs/small -
  patchtrain generate runs/small-sft "What is a cat?" --chat

RUN is a run folder, or any plain Hugging Face model folder. Prompt and completion share the context
the model was trained with: a prompt too long for that is cut at its beginning. The same seed gives
the same text."""

from __future__ import annotations

import argparse
import sys

from patchtrain.cli.parser import general
from patchtrain.errors import UsageError, warning_line

HELP = "let a trained model continue a prompt"

DEFAULT_NEW_TOKENS = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", default="", help="text to continue; - reads stdin"
    )
    parser.add_argument(
        "--chat", action="store_true", help="PROMPT is a question: only the answer is printed"
    )
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="completions (default: %(default)s)"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"tokens to generate (default: {DEFAULT_NEW_TOKENS}, at most half the context)",
    )
    group.add_argument(
        "--temperature", type=float, default=0.8, metavar="X", help="default: %(default)s"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="sample from the likeliest tokens that together have this probability "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest (default: off)",
    )
    group.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    general(parser, json="prompt and completions")


def run(args: argparse.Namespace) -> int:
    if args.samples < 1:
        raise UsageError(f"--samples must be at least 1, not {args.samples}")
    prompt = sys.stdin.read().removesuffix("\n") if args.prompt == "-" else args.prompt

    import torch

    from patchtrain.evaluation.generate import Sampling, continue_text, encode_prompt, new_text
    from patchtrain.evaluation.loading import load_model

    sampling = Sampling(args.temperature, args.top_p, args.top_k, args.greedy)
    loaded = load_model(args.run_folder)
    from transformers import TextStreamer

    new_tokens = args.max_new_tokens
    if new_tokens is None:
        half = loaded.context_length // 2 if loaded.context_length else DEFAULT_NEW_TOKENS
        new_tokens = max(1, min(DEFAULT_NEW_TOKENS, half))
    if args.chat:
        from patchtrain import chat

        chat.use_template(loaded.tokenizer)
        question = [{"role": "user", "content": prompt}]
        prompt = chat.render(loaded.tokenizer, question, "PROMPT", prompt=True)
    ids, cut = encode_prompt(
        loaded.tokenizer, prompt, new_tokens, loaded.context_length, whole=args.chat
    )
    if cut:
        text = (
            f"the prompt has {ids.shape[1] + cut} tokens; its first {cut} were dropped so that it "
            f"fits a context of {loaded.context_length} with {new_tokens} new tokens"
        )
        print(warning_line(text), file=sys.stderr)
    torch.manual_seed(args.seed)
    completions = []
    for number in range(1, args.samples + 1):
        streamer = None
        if not args.json:
            if args.samples > 1:
                print(f"--- {number} of {args.samples} ---")
            streamer = TextStreamer(
                loaded.tokenizer, skip_prompt=args.chat, skip_special_tokens=True
            )
        output = continue_text(loaded.model, loaded.tokenizer, ids, new_tokens, sampling, streamer)
        completions.append(new_text(loaded.tokenizer, ids[0], output))
    if args.json:
        from patchtrain.cli.results import show_json

        show_json({"prompt": prompt, "prompt_tokens_cut": cut, "completions": completions})
    return 0
