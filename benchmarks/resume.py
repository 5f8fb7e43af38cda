"""How long a run takes to go on: after 10 steps and after 1,000,000, and what a checkpoint costs.

The data of a step is computed from the seed and the step, so both must take the same time. Timed is
from `train(resume_from_checkpoint=True)` to the first step's batch; the checkpoints are of a run
that is said to stand at that step. Also timed: writing one whole checkpoint (checksums and waiting
for the disk included) and what torch.save takes for the same tensors.

    python benchmarks/resume.py                        a model of 15M parameters, two minutes
    python benchmarks/resume.py --width 64 --layers 1 --repeats 1 --out /tmp/resume.json
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, spread, write
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain import PatchConfig, PatchTrainer

STEPS = [10, 1_000_000]
CONTEXT, ROWS = 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=320, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/resume.json"))
    args = parser.parse_args()
    tokens = np.random.default_rng(0).integers(0, args.vocabulary, 1 << 20).astype(np.uint16)
    seconds: dict[int, list[float]] = {step: [] for step in STEPS}
    writing: dict[str, list[float]] = {"checkpoint": [], "torch.save": []}
    for _ in range(args.repeats):
        for step in STEPS:
            with tempfile.TemporaryDirectory(prefix="resume-benchmark-") as folder:
                first = trainer(args, tokens, Path(folder))
                begin = time.perf_counter()
                stand_at(first, step)
                writing["checkpoint"].append(time.perf_counter() - begin)
                writing["torch.save"].append(torch_save(first, Path(folder)))
                seconds[step].append(until_first_batch(trainer(args, tokens, Path(folder))))
    result = about("resume", "model, tokens, plan and machine; only the step differs")
    result["settings"] = {
        "parameters": sum(p.numel() for p in first.model.parameters()),
        **{name: getattr(args, name) for name in ("vocabulary", "width", "layers", "repeats")},
        "seed": 0,
    }
    result["rows"] = [{"step": step, "seconds": spread(found)} for step, found in seconds.items()]
    result["writing_seconds"] = {name: spread(found) for name, found in writing.items()}
    for row in result["rows"]:
        print(f"after {row['step']:9,} steps: {row['seconds']['median']:.3f} s to the first batch")
    for name, found in result["writing_seconds"].items():
        print(f"{name}: {found['median']:.3f} s")
    write(args.out, result)


def trainer(args: argparse.Namespace, tokens: np.ndarray, folder: Path) -> PatchTrainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 8 // 3 // 32 * 32,
        num_hidden_layers=args.layers,
        num_attention_heads=max(args.width // 64, 1),
        num_key_value_heads=max(args.width // 64, 1),
        max_position_embeddings=CONTEXT,
    )
    plan = {
        "preset": "superposition", "patch_size": 4, "step_fraction": 0.3, "warmup_steps": 1,
        "context_length": CONTEXT, "tokens_per_step": ROWS * CONTEXT, "steps": STEPS[-1] + 10,
        "max_epochs": 1e4,
    }  # fmt: skip
    values: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "report_to": "none"}
    config_of_run = PatchConfig(
        str(folder / "run"), plan=plan, use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=ROWS, **values,
    )  # fmt: skip
    return PatchTrainer(LlamaForCausalLM(config), config_of_run, tokens)


def stand_at(run: PatchTrainer, step: int) -> None:
    """Write the checkpoint that the run would have after ``step`` steps."""
    run.create_optimizer_and_scheduler(run.plan.total_steps)
    for parameter in run.model.parameters():  # state such as AdamW has after its first step
        run.optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.ones_like(parameter),
        }
    state = run.state
    state.global_step, state.max_steps, state.train_batch_size = step, run.plan.total_steps, ROWS
    run._save_checkpoint(run.model, None)


def torch_save(run: PatchTrainer, folder: Path) -> float:
    """Seconds for the same tensors the plain way, not waiting for the disk."""
    begin = time.perf_counter()
    torch.save(run.model.state_dict(), folder / "model.pt")
    torch.save(run.optimizer.state_dict(), folder / "optimizer.pt")
    taken = time.perf_counter() - begin
    for name in ("model.pt", "optimizer.pt"):
        (folder / name).unlink()
    return taken


class _FirstBatch(Exception):  # noqa: N818
    """The run has what it needs for its first step."""


def until_first_batch(run: PatchTrainer) -> float:
    """Seconds until the first step begins, checkpoint verified and read, batch in hand."""

    def training_step(*args: Any, **kwargs: Any) -> Any:
        raise _FirstBatch

    run.training_step = training_step  # type: ignore[method-assign]
    begin = time.perf_counter()
    try:
        run.train(True)
    except _FirstBatch:
        taken = time.perf_counter() - begin
    shutil.rmtree(run.args.output_dir)
    return taken


if __name__ == "__main__":
    main()
