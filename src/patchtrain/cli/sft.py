"""Tune a pretrained model to answer, with TRL's SFTTrainer.

examples:
  patchtrain sft runs/small --data alpaca.json
  patchtrain sft runs/small --data alpaca.json --learning-rate 5e-4    # a small model wants more
  patchtrain sft runs/small --data chats.jsonl.gz more.parquet --epochs 2 --out runs/tuned
  patchtrain sft runs/small --data hf:HuggingFaceH4/ultrachat_200k --split train_sft
  patchtrain sft runs/small --data alpaca.json --resume

RUN is a run folder, or any plain Hugging Face model folder. The result is a run folder of its own
(by default RUN-sft), with a plain model that eval, generate and report read.

Rows are conversations (messages), prompt and completion, Alpaca's instruction, input and output, or
ShareGPT's conversations. The model's own chat template is used, or a plain one where it has none.
Only answers are learned, and several rows are packed into one context without seeing each other.

The learning rate suits models of billions of parameters; one below 100 million wants ten to fifty
times as much. 5 % of the conversations are held out, and their loss before and after goes to
evaluation.json and the page. SIGTERM and Ctrl-C finish the step and save; --resume goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from patchtrain.cli.parser import general

HELP = "tune a model to follow instructions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE",
        help="JSON lines, JSON or Parquet (also .gz, .xz, .zst), folders, or hf:owner/name",
    )
    group.add_argument(
        "--split", default="train", metavar="NAME", help="split of a dataset (default: %(default)s)"
    )
    group.add_argument(
        "--validation-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="share of the conversations held out, at most 1,000 (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="the new run (default: RUN-sft)")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a tuning that ended early"
    )
    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs",
        type=float,
        default=3.0,
        metavar="X",
        help="passes over the data (default: %(default)g)",
    )
    group.add_argument(
        "--max-steps", type=int, metavar="N", help="optimizer steps, in place of --epochs"
    )
    group.add_argument(
        "--learning-rate",
        type=float,
        default=2e-5,
        metavar="X",
        help="the peak, of a cosine with a short warm-up (default: %(default)g)",
    )
    group.add_argument(
        "--tokens-per-step",
        type=int,
        default=16_384,
        metavar="N",
        help="tokens of an optimizer step, in whole contexts, at least one (default: %(default)s)",
    )
    group.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="longer rows are cut (default: as in training)",
    )
    group.add_argument("--no-packing", action="store_true", help="one row in each context")
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of what is held out and the order (default: %(default)s)",
    )
    general(parser, json="what the tuning ended at", quiet=True)


def run(args: argparse.Namespace) -> int:
    from patchtrain.tuning.tune import Tuning, tune

    settings = Tuning(
        data=args.data,
        split=args.split,
        epochs=args.epochs,
        max_steps=args.max_steps,
        learning_rate=args.learning_rate,
        tokens_per_step=args.tokens_per_step,
        context_length=args.context_length,
        packing=not args.no_packing,
        held_out=args.validation_fraction,
        seed=args.seed,
    )
    name = Path(args.run_folder)
    out = args.out or str(name.with_name(f"{name.resolve().name}-sft"))
    folder = tune(args.run_folder, out, settings, args.resume, args.quiet)
    if args.json:
        from patchtrain.cli.results import run_result, show_json

        show_json(run_result(folder))
        return 0
    about = folder.part("tuning")
    if about.get("after"):
        before, after = about["before"], about["after"]
        print(
            f"held-out answers: {before['loss']:.4f} nats a token before, {after['loss']:.4f} "
            f"after ({after['answers']:,} answers, {after['targets']:,} tokens)"
        )
    print(f"model       {out}/model\npage        {out}/report.html")
    print(f'try it      patchtrain generate {out} "..." --chat')
    print(f"next        patchtrain eval {out} --ifeval")
    return 0
