"""The memory that `patchtrain.memory.estimate` tells, against what training takes on a CPU.

Models of three sizes are trained for some steps, each in a fresh process: at patch level and at
token level, with and without gradient checkpointing, in bf16, and with several passes a step. What
they take is the peak of the process's resident size in the last step, beyond what it was before
there was a model (Linux only). The estimate is made without training anything.

    python benchmarks/memory.py                            about three minutes
    python benchmarks/memory.py --models tiny --out /tmp/memory.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import about, one_line, status, write
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain import patch_level
from patchtrain.memory import Training, estimate

# hidden, intermediate, layers, heads, vocabulary
MODELS = {
    "tiny": (128, 352, 4, 4, 2048),
    "5M": (224, 608, 6, 4, 4096),
    "20M": (384, 1024, 8, 6, 8192),
    "60M": (640, 1728, 10, 10, 8192),
}
CONTEXT_LENGTH, ROWS = 256, 4
# What is freed goes back to the system at once, so that the resident size is what lives: blocks
# from this size on by themselves, and the end of the heap as soon as it is as long.
RETURNED_FROM = 65536
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(RETURNED_FROM)}
_TRIM_THRESHOLD = -1  # mallopt's number for it; from the start it would make imports slow


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/memory.json"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["5M", "20M", "60M"],
                        metavar="NAME", help=f"of {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--steps", type=int, default=2, help="of which the last one counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", type=int, help="only so many of each model's")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(resident_peak(json.loads(args.measure)))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("memory.py: the peak of the resident size is read from Linux's /proc")
    rows = []
    for name in args.models:
        chosen = cases(more=name == args.models[0])[: args.cases]
        rows += [compare(name, case, args) for case in chosen]
    result = about("memory", "model, batch, optimizer and machine of estimate and training")
    result["settings"] = {
        "models": {name: MODELS[name] for name in args.models}, "context_length": CONTEXT_LENGTH,
        "rows": ROWS, "steps": args.steps, "threads": args.threads, "seed": 0,
    }  # fmt: skip
    result["rows"] = rows
    write(args.out, result)


def cases(more: bool) -> list[dict[str, Any]]:
    """What is trained: both stages, with and without checkpointing, and ``more`` for one model."""
    plain = [{"patch_size": K, "gradient_checkpointing": again}
             for K in (4, 1) for again in (False, True)]  # fmt: skip
    if more:
        plain += [{"patch_size": K, "bf16": True} for K in (4, 1)]
        plain += [
            {"patch_size": 4, "step_sequences": 2 * ROWS},
            {"patch_size": 4, "backend": "plain"},
        ]
    return plain


def compare(name: str, case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the result."""
    training = Training(
        context_length=CONTEXT_LENGTH, sequences=ROWS, device="cpu", **case
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config(name))
    told = estimate(model, training)
    request = json.dumps({"model": name, "steps": args.steps, "threads": args.threads, **case})
    done = subprocess.run(
        [sys.executable, __file__, "--measure", request], capture_output=True, text=True,
        env={**os.environ, **ALLOCATOR},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"memory.py: training failed:\n{done.stderr[-2000:]}")
    measured = int(done.stdout.splitlines()[-1])
    row = {
        "model": name, "parameters": sum(p.numel() for p in model.parameters()),
        **{key: getattr(training, key) for key in (
            "patch_size", "gradient_checkpointing", "bf16", "passes", "optimizer", "backend")},
        "estimate": told.to_dict(), "measured_bytes": measured, "ratio": told.peak / measured,
    }  # fmt: skip
    print(f"{name:5} {json.dumps(case):58} told {told.peak / 1e6:7.1f} MB, measured "
          f"{measured / 1e6:7.1f} MB, ratio {row['ratio']:.3f} ({told.when})",
          flush=True)  # fmt: skip
    return row


def config(name: str) -> LlamaConfig:
    hidden, intermediate, layers, heads, vocabulary = MODELS[name]
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=CONTEXT_LENGTH, use_cache=False,
    )  # fmt: skip


# ---- in a process of its own


def resident_peak(request: dict[str, Any]) -> int:
    """Bytes of the resident size at the peak of a training step, beyond those without a model."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    train({**request, "model": "tiny", "steps": 2})  # what is loaded and allocated only once
    gc.collect()
    library = ctypes.CDLL(None)
    library.mallopt(_TRIM_THRESHOLD, RETURNED_FROM)
    library.malloc_trim(0)
    before = status("VmRSS")
    train(request, watched=True)
    return status("VmHWM") - before


def train(request: dict[str, Any], watched: bool = False) -> None:
    """Some steps, as the trainer takes them; the peak is set anew before the last one."""
    K, bf16 = request["patch_size"], request.get("bf16", False)
    model = LlamaForCausalLM(config(request["model"])).train()
    if request.get("gradient_checkpointing"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    passes = request.get("step_sequences", ROWS) // ROWS
    vocabulary = MODELS[request["model"]][-1]
    ids = torch.randint(vocabulary, (ROWS, K * CONTEXT_LENGTH))
    with patch_level(model, K, backend=request.get("backend", "auto")):
        for number in range(request["steps"]):
            if watched and number == request["steps"] - 1:
                Path("/proc/self/clear_refs").write_text("5")
            for _ in range(passes):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    loss = model(input_ids=ids, labels=ids).loss / passes
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    with one_line("memory.py"):
        main()
