"""What patchtrain's own loop costs: the same token-level run through three loops.

    bare         a plain PyTorch loop
    trainer      transformers' Trainer on a datasets.Dataset of blocks, as run_clm does it
    patchtrain   `patchtrain train`, the command itself

Model, initial weights, batches, optimizer, clipping and schedule are the same; the losses of the
last steps must agree, or the benchmark fails. Each run is a process of its own. The three take
turns, each round beginning with another. Timed is from the end of the first steps to the end of the
last one, in pieces of two steps: start-up, evaluation and saving are in none of the three. Whatever
else a machine does can only add to the time of a piece, so what counts is the mean of each loop's
fastest quarter of pieces; the median of all of them stands beside it.

    python benchmarks/overhead.py                        about eight minutes on two cores
    python benchmarks/overhead.py --steps 6 --skip 2 --width 64 --layers 1 --rounds 1 --out o.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import about, spread, write

from patchtrain.recipe import Recipe

ARMS = ["bare", "trainer", "patchtrain"]
LOGGING_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default=str(Path(os.__file__).parent / "*.py"),
                        help="what to train on, as `patchtrain prepare` reads it; default: the "
                        "Python standard library's sources")  # fmt: skip
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--skip", type=int, default=4, help="steps at the beginning not timed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step, in one device pass")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/overhead.json"))
    parser.add_argument("--arm", nargs=2, metavar=("NAME", "RECIPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not LOGGING_STEPS <= args.skip < args.steps or args.skip % LOGGING_STEPS:
        parser.error(f"--skip must be a multiple of {LOGGING_STEPS} and below --steps")
    if args.arm:
        arm = {"bare": run_bare, "trainer": run_trainer}[args.arm[0]]
        print(json.dumps(arm(Recipe.load(Path(args.arm[1])), args)))
        return
    with tempfile.TemporaryDirectory(prefix="overhead-benchmark-") as folder:
        recipe = make_recipe(Path(folder), args)
        found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for number in range(args.rounds):
            first = number % len(ARMS)
            for arm in ARMS[first:] + ARMS[:first]:
                found[arm].append(measure(arm, recipe, args))
                rate = statistics.median(found[arm][-1]["tokens_per_s"])
                print(f"round {number + 1} {arm:10} {rate:10,.0f} tokens/s", flush=True)
    result = about("overhead", "model, weights, batches, optimizer, clipping, schedule, machine")
    result["settings"] = {name: getattr(args, name) for name in (
        "steps", "skip", "rounds", "vocabulary", "width", "layers", "context_length", "rows",
        "threads")}  # fmt: skip
    rates = {arm: [r for run in runs for r in run["tokens_per_s"]] for arm, runs in found.items()}
    best = {arm: fastest_quarter(each) for arm, each in rates.items()}
    result["rows"] = [
        {
            "loop": arm,
            "tokens_per_s": best[arm],
            "ratio_to_bare": best[arm] / best["bare"],
            "ratio_to_trainer": best[arm] / best["trainer"],
            "all_tokens_per_s": spread(rates[arm]),
            "pieces": len(rates[arm]),
            "last_losses": found[arm][0]["losses"],
        }
        for arm in ARMS
    ]
    check_losses(result["rows"])
    write(args.out, result)


def fastest_quarter(rates: list[float]) -> float:
    """The mean of the highest quarter of some tokens a second, at least one."""
    return statistics.fmean(sorted(rates)[-max(len(rates) // 4, 1) :])


def make_recipe(folder: Path, args: argparse.Namespace) -> Path:
    """A recipe and its store."""
    store = folder / "store"
    prepare = ["prepare", args.text, "--out", str(store), "--train-tokenizer", "bpe",
               "--vocab-size", str(args.vocabulary)]  # fmt: skip
    patchtrain(prepare, args.threads)
    recipe = {
        "store": str(store),
        "out": str(folder / "run"),
        "seed": 0,
        "model": {"config": {
            "model_type": "llama", "hidden_size": args.width,
            "intermediate_size": args.width * 8 // 3 // 32 * 32,
            "num_hidden_layers": args.layers,
            "num_attention_heads": max(args.width // 64, 1),
            "num_key_value_heads": max(args.width // 64, 1),
        }},
        "plan": {
            "preset": "paper", "patch_fraction": 0.0,
            "context_length": args.context_length, "steps": args.steps,
            "tokens_per_step": args.rows * args.context_length, "warmup_steps": 2,
            "max_epochs": 100.0,
        },
        "training": {
            "per_device_train_batch_size": args.rows, "eval_strategy": "no",
            "save_strategy": "no", "logging_steps": LOGGING_STEPS, "logging_first_step": False,
        },
        "samples": [],
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def measure(arm: str, recipe: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of each piece of one run in a process of its own, and its last losses."""
    if arm == "patchtrain":
        out = Recipe.load(recipe).out
        patchtrain(["train", str(recipe), "--quiet", "--overwrite"], args.threads)
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in events if row["event"] == "train"]
        pieces = itertools.pairwise(row for row in rows if row["step"] >= args.skip)
        speeds = [
            (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
            for first, last in pieces
        ]
        return {"tokens_per_s": speeds, "losses": [row["loss"] for row in rows[-3:]]}
    names = ("steps", "skip", "threads")
    options = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    command = [sys.executable, __file__, "--arm", arm, str(recipe), *options]
    done = subprocess.run(command, env=environment(args.threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def patchtrain(arguments: list[str], threads: int) -> None:
    command = [sys.executable, "-m", "patchtrain", *arguments]
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"patchtrain {arguments[0]} failed:\n{done.stderr[-3000:]}")


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def run_bare(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """A page of PyTorch: the loop that the others are measured against."""
    prepared = same_start(recipe)
    trained, plan = prepared.trainer, prepared.plan
    model = trained.model.train()
    decay = set(trained.get_decay_parameter_names(model))
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n in decay], "weight_decay": trained.args.weight_decay},
        {"params": [p for n, p in named if n not in decay], "weight_decay": 0.0},
    ]
    betas = (trained.args.adam_beta1, trained.args.adam_beta2)
    peak = trained.args.learning_rate
    # The very AdamW that Trainer's default names.
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=betas, eps=trained.args.adam_epsilon,
                                  fused="fused" in str(trained.args.optim))  # fmt: skip
    losses, ends = [], []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * plan.rate_at(step)
        ids = torch.from_numpy(trained.batches.step(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trained.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return timed(ends, losses, plan.total_tokens // plan.total_steps, args)


def run_trainer(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """transformers' own Trainer, on the same blocks as rows of a datasets.Dataset."""
    import datasets
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    prepared = same_start(recipe)
    trained, plan = prepared.trainer, prepared.plan
    rows = itertools.chain.from_iterable(trained.batches.step(s) for s in range(args.steps))
    blocks = [row.tolist() for row in rows]
    data = datasets.Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    theirs = trained.args
    arguments = TrainingArguments(
        output_dir=str(recipe.out) + "-trainer", max_steps=args.steps, use_cpu=True,
        per_device_train_batch_size=theirs.per_device_train_batch_size, report_to="none",
        learning_rate=theirs.learning_rate, adam_beta2=theirs.adam_beta2, optim=theirs.optim,
        weight_decay=theirs.weight_decay, max_grad_norm=theirs.max_grad_norm, save_strategy="no",
        logging_steps=LOGGING_STEPS, disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(
        model=trained.model, args=arguments, train_dataset=data,
        data_collator=default_data_collator, callbacks=[Clock()],
    )  # fmt: skip
    trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, plan.rate_at)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    found = timed(ends, losses, plan.total_tokens // plan.total_steps, args)
    return {**found, "losses": losses[-3:]}


def same_start(recipe: Recipe) -> Any:
    """What `patchtrain train` would train, before it does: model, weights, plan, batches."""
    from patchtrain.training.run import prepare_run

    return prepare_run(recipe, quiet=True)


def timed(
    ends: list[float], losses: list[float], tokens: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Tokens a second of each piece after the first steps, and the last losses, means of pieces."""
    pieces = itertools.pairwise(ends[args.skip - 1 :: LOGGING_STEPS])
    speeds = [LOGGING_STEPS * tokens / (last - first) for first, last in pieces]
    means = [sum(part) / LOGGING_STEPS for part in zip(*[iter(losses)] * LOGGING_STEPS)]  # noqa: B905
    return {"tokens_per_s": speeds, "losses": means[-3:]}


def check_losses(rows: list[dict[str, Any]]) -> None:
    """The three loops must have trained the same."""
    first = rows[0]["last_losses"]
    for row in rows[1:]:
        for got, want in zip(row["last_losses"], first, strict=True):
            if abs(got - want) > 2e-3 * abs(want):
                raise SystemExit(f"{row['loop']} ended at {row['last_losses']}, bare at {first}: "
                                 f"they did not train the same")  # fmt: skip


if __name__ == "__main__":
    main()
