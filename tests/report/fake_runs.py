"""Run folders with made-up but consistent numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from patchtrain.evaluation.record import record
from patchtrain.runs import RunFolder

FLOPS_PER_POSITION = 6 * 4_200_000
PROMPTS = ["The cell is", "Light from the sun", "def main():"]


def write_run(
    folder: Path,
    stages: tuple[tuple[int, int], ...] = ((4, 500), (1, 1000)),
    finished: bool = True,
    log_every: int = 5,
    floor: float = 3.4,
    name: str | None = None,
    **info: Any,
) -> RunFolder:
    """A run with ``(patch size, steps)`` stages of 8,192 positions a step."""
    folder.mkdir(parents=True)
    rng = random.Random(folder.name)
    positions_a_step = 8192
    plan_stages, rows, first = [], [], 0
    step = tokens = positions = 0
    seconds, flops, loss = 0.0, 0.0, 9.1
    for index, (k, steps) in enumerate(stages):
        stage = {
            "name": f"patches of {k}" if k > 1 else "tokens",
            "patch_size": k,
            "first_step": first,
            "steps": steps,
            "tokens": steps * positions_a_step * k,
            "positions": steps * positions_a_step,
            "sequences_per_step": 32,
            "tokens_per_step": positions_a_step * k,
        }
        plan_stages.append(stage)
        counters = {"stage": index, "patch_size": k}
        if index:
            now = {"tokens": tokens, "positions": positions, "flops": flops, "seconds": seconds}
            now["data_seconds"] = 0.05 * seconds
            rows.append({"event": "switch", "step": step, **counters, **now})
        for i in range(1, steps + 1):
            step, tokens = step + 1, tokens + positions_a_step * k
            positions, seconds = positions + positions_a_step, seconds + 0.21 + 0.02 * (k > 1)
            flops += positions_a_step * FLOPS_PER_POSITION
            goal = floor + (2.2 if k > 1 else 0)
            loss += (goal - loss) * 0.012
            progress = i / steps
            now = {
                "step": step,
                **counters,
                "tokens": tokens,
                "positions": positions,
                "flops": flops,
                "seconds": round(seconds, 3),
                "data_seconds": round(0.05 * seconds, 3),
            }
            if i % log_every == 0:
                rows.append(
                    {
                        "event": "train",
                        **now,
                        "loss": loss + rng.gauss(0, 0.06),
                        "learning_rate": 1e-3 * (0.55 + 0.45 * math.cos(math.pi * progress)),
                        "grad_norm": None if i % 50 else 0.8,
                        "tokens_per_s": positions_a_step * k / 0.21,
                        "positions_per_s": positions_a_step / 0.21,
                    }
                )
            if step % 100 == 0:
                text = loss + (0.9 if k > 1 else 0.03)
                rows.append(
                    {"event": "eval", **now, "loss": text, "bits_per_byte": text * 0.37}
                    | {"patch_loss": loss + 0.05 if k > 1 else None}
                )
        first += steps
    total = {
        key: sum(stage[key] for stage in plan_stages) for key in ("tokens", "positions", "steps")
    }
    values = {
        "format_version": 1,
        "name": name or folder.name,
        "status": "finished" if finished else "running",
        "command": f"patchtrain train recipes/textbooks.yaml --out runs/{folder.name}",
        "started": "2026-03-01T09:12:44+00:00",
        "finished": "2026-03-01T09:21:02+00:00" if finished else None,
        "seed": 1,
        "versions": {
            "patchtrain": "0.1.0",
            "python": "3.12.3",
            "torch": "2.13.0",
            "transformers": "5.23.0",
        },
        "machine": {"platform": "Linux-6.8-x86_64", "cores": 8, "device": "cpu"},
        "store": {
            "path": "/data/stores/textbooks",
            "fingerprint": "5f0c7e" * 10,
            "train_tokens": 41_230_112,
            "validation_tokens": 412_301,
            "vocab_size": 8192,
        },
        "model": {
            "class": "LlamaForCausalLM",
            "parameters": 6_300_000,
            "body_parameters": 4_200_000,
        },
        "plan": {
            "preset": "paper",
            "hold": "tokens",
            "context_length": 256,
            "tokens_per_step": positions_a_step,
            "schedule": "cosine",
            "schedule_scope": "stage",
            "optimizer_at_switch": "reset",
            "stages": plan_stages,
            "total_tokens": total["tokens"],
            "total_positions": total["positions"],
            "total_steps": total["steps"],
            "compute_ratio": total["positions"] / total["tokens"],
        },
        "result": {
            "loss": loss + 0.03,
            "perplexity": math.exp(loss + 0.03),
            "word_perplexity": math.exp((loss + 0.03) * 1.31),
            "bits_per_byte": (loss + 0.03) * 0.37,
            "targets": 412_300,
            "context_length": 256,
            "stride": 256,
        }
        if finished
        else None,
        "flops": flops,
        "seconds": seconds,
    } | info
    run = RunFolder(folder)
    run.write_info(values)
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run


def add_extras(run: RunFolder, completion: str = " made of many small rooms.\n\nEach room") -> None:
    """Samples, an evaluation and a recipe."""
    samples = [{"prompt": prompt, "completion": completion} for prompt in PROMPTS]
    run.samples_file.write_text(json.dumps(samples), encoding="utf-8")
    evaluation = {
        "loss": 3.41,
        "perplexity": math.exp(3.41),
        "word_perplexity": 88.1234,
        "bits_per_byte": 1.2617,
        "targets": 412_300,
        "context_length": 256,
        "stride": 128,
        "scored": "the validation split of the run's store, as one stream",
        "by_position": _positions(3.41),
        "by_document": _documents(1.2617),
        "stages": [
            {
                "stage": 1,
                "patch_size": 4,
                "loss": 6.02,
                "perplexity": math.exp(6.02),
                "bits_per_byte": 2.2274,
                "targets": 412_300,
                "by_position": _positions(6.02),
                "by_document": _documents(2.2274),
            }
        ],
    }
    record(run.evaluation_file, "text", "validation", evaluation)
    scores = {"score": 0.612, "score_stderr": 0.006, "chance": 0.5, "documents": 6700}
    tasks = {"metric": "acc", "data": "the Hub", "subtasks": {"blimp_wh_island": scores}, **scores}
    record(run.evaluation_file, "tasks", "blimp", tasks)
    run.recipe_file.write_text(
        "store: /data/stores/textbooks\nplan:\n  preset: paper\n  patch_size: 4\n", encoding="utf-8"
    )


def _positions(loss: float) -> list[dict[str, Any]]:
    """A loss that falls with the context, to 256 tokens."""
    edges = [(2**i // 2 + 1, 2**i) for i in range(9)]
    return [
        {"from": low, "to": high, "loss": loss + 3 / low, "targets": 100 * (high - low + 1)}
        for low, high in edges
    ]


def _documents(bits: float) -> dict[str, Any]:
    quantiles = ("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1")
    each = [bits - 0.3 + 0.1 * i for i in range(len(quantiles))]

    def named(i: int) -> list[dict[str, Any]]:
        return [{"document": i, "bits_per_byte": each[i], "loss": 3.0, "targets": 9,
                 "utf8_bytes": 20}]  # fmt: skip

    return {
        "documents": len(each), "mean": bits,
        "quantiles": dict(zip(quantiles, each, strict=True)),
        "best": named(0), "worst": named(6), "each": each,
    }  # fmt: skip
