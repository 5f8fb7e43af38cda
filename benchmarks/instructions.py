"""What a short instruction tuning does to a model: held-out answers and IFEval, before and after.

A model folder that is there is tuned for some steps with ``patchtrain sft``; before and after, the
same held-out answers are scored and the same first prompts of IFEval answered, by the likeliest
token. The commands are those a person would type, and nothing is fetched.

python benchmarks/instructions.py --model SmolLM2-135M-Instruct/ --data alpaca.json \\
    --prompts ifeval_prompts.jsonl

On one core, minutes go into the answers: --first prompts of up to --max-new-tokens each, twice.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import about, write

from patchtrain.cli.main import main as patchtrain
from patchtrain.runs import RunFolder, read_evaluation

# What a result says of its making, which this benchmark's own head says better.
_MAKING = ("name", "command", "finished", "versions", "model", "device", "answers_file")
RESULT = Path(__file__).parents[1] / "results" / "instructions.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a plain model folder")
    parser.add_argument("--data", required=True, help="instruction data, as sft reads it")
    parser.add_argument("--prompts", required=True, help="IFEval's prompts, JSON lines")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--tokens-per-step", type=int, default=512)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--first", type=int, default=8, help="prompts of IFEval")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    settings |= {name: Path(settings[name]).name for name in ("model", "data", "prompts")}
    with tempfile.TemporaryDirectory() as folder:
        tuned = Path(folder, "tuned")
        before = followed(args, args.model, Path(folder, "before.json"))
        begun = time.monotonic()
        run(
            "sft", args.model, "--data", args.data, "--out", tuned, "--max-steps", args.steps,
            "--learning-rate", args.learning_rate, "--tokens-per-step", args.tokens_per_step,
            "--context-length", args.context_length, "--seed", args.seed,
        )  # fmt: skip
        seconds = time.monotonic() - begun
        after = followed(args, str(tuned), Path(folder, "after.json"))
        info = RunFolder(tuned).info()
    tuning = info["tuning"]
    losses = {"before": tuning["before"], "after": tuning["after"]}
    rows = [
        {"model": when, "answers": losses[when], "ifeval": values}
        for when, values in (("before", before), ("after", after))
    ]
    result = {
        **about(
            "instructions",
            "held-out answers, prompts, greedy decoding and answer length; only the weights differ",
        ),
        "settings": settings,
        "parameters": info["model"]["parameters"],
        "tuning": {
            "conversations": tuning["conversations"],
            "held_out": tuning["held_out_conversations"],
            "tokens": info["plan"]["total_tokens"],
            "seconds": round(seconds, 1),
        },
        "rows": rows,
    }
    write(args.out, result)


def followed(args: argparse.Namespace, model: str, out: Path) -> dict[str, Any]:
    """IFEval of a model, on the first prompts."""
    run(
        "eval", model, "--ifeval", "--prompts", args.prompts, "--limit", args.first,
        "--max-new-tokens", args.max_new_tokens, "--out", out,
    )  # fmt: skip
    found = read_evaluation(out)["instructions"]["ifeval"]
    return {name: value for name, value in found.items() if name not in _MAKING}


def run(*words: Any) -> None:
    if code := patchtrain([str(word) for word in words]):
        raise SystemExit(code)


if __name__ == "__main__":
    main()
