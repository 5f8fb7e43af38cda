"""A step of large models on many processes, run without data, against what `estimate` tells.

The models of arXiv:2407.12665 (370M to 2.7B) and those in the shapes of Llama 2 (7B, 13B, 70B) are
put at patch level and at token level, sharded by FSDP2 in bf16 over a fake process group, and
trained for a step on fake tensors: forward, backward, clipping, AdamW. torch's memory tracker
counts what the first rank holds. All layers are there; nothing is extrapolated. Beside it stands
the estimate of the same step, whether it fits a device, and what would make it fit if not.

    python benchmarks/traces.py                           all models, about ten minutes
    python benchmarks/traces.py --models 370M --ranks 8 --out /tmp/traces.json
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import about, one_line, write
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain.memory import Training, estimate, fits, what_would_fit
from patchtrain.memory.estimate import RESERVE
from patchtrain.memory.tracing import trace_step

# hidden, intermediate, layers, heads, heads of keys and values
MODELS = {
    "tiny": (64, 176, 3, 4, 2),
    "370M": (1024, 2752, 24, 16, 16),
    "780M": (1536, 4128, 24, 16, 16),
    "1.3B": (2048, 5504, 24, 16, 16),
    "2.7B": (2560, 6880, 32, 32, 32),
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "70B": (8192, 28672, 80, 64, 8),
}
VOCABULARY, CONTEXT_LENGTH, PATCH_SIZE = 32000, 2048, 4
# All at 64 ranks; the largest also at the fewest and the most.
RANKS, MORE_RANKS, WITH_MORE = [64], [8, 1024], ("70B",)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/traces.json"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[1:],
                        metavar="NAME", help=f"of {', '.join(MODELS)}")  # fmt: skip
    parser.add_argument("--ranks", type=int, nargs="+",
                        help="default: 64, and 8 and 1,024 for 70B")  # fmt: skip
    parser.add_argument("--sequences", type=int, default=8, help="of a device pass")
    parser.add_argument("--device-gb", type=float, default=80, help="memory of a device")
    args = parser.parse_args()
    begin = time.perf_counter()
    rows = [
        row(name, ranks, patch_size, args)
        for name in args.models
        for ranks in args.ranks or [*RANKS, *(MORE_RANKS if name in WITH_MORE else [])]
        for patch_size in (PATCH_SIZE, 1)
    ]
    result = about("traces", "model, sequences, positions and sharding of trace and estimate")
    result["settings"] = {
        "vocabulary": VOCABULARY, "context_length": CONTEXT_LENGTH, "sequences": args.sequences,
        "bf16": True, "gradient_checkpointing": True, "optimizer": "adamw_torch_fused",
        "device_gb": args.device_gb, "reserve": RESERVE,
        "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    result["rows"] = rows
    write(args.out, result)


def row(name: str, ranks: int, patch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """A traced step and what was told of it."""
    hidden, intermediate, layers, heads, few_heads = MODELS[name]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=few_heads,
        max_position_embeddings=CONTEXT_LENGTH, use_cache=False,
    )  # fmt: skip
    trace = trace_step(
        config, ranks=ranks, patch_size=patch_size, context_length=CONTEXT_LENGTH,
        sequences=args.sequences, gradient_checkpointing=True, device="cpu",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    training = Training(
        patch_size=patch_size, context_length=CONTEXT_LENGTH, sequences=args.sequences,
        processes=ranks, fsdp=True, gradient_checkpointing=True, bf16=True, device="cpu",
    )  # fmt: skip
    told = estimate(model, training)  # of what was traced: the loss's chunks are those of a CPU
    on_gpu = estimate(model, Training(**{**vars(training), "device": "cuda"}))
    size = round(args.device_gb * 1e9)
    found = {
        "model": name, "parameters": trace.parameters, "ranks": ranks, "patch_size": patch_size,
        "layers": trace.layers, "part": trace.sharded_parameters,
        "parts_as_expected": not trace.wrong_shards and trace.gradients == trace.sharded_parameters,
        "traced_bytes": trace.peak_bytes, "at_peak": trace.at_peak,
        "estimate": told.to_dict(), "ratio": told.peak / trace.peak_bytes,
        "gpu_estimate_bytes": on_gpu.peak, "fits": fits(on_gpu, size),
        "would_fit": what_would_fit(model, on_gpu, size), "seconds": trace.seconds,
    }  # fmt: skip
    print(f"{name:5} {ranks:5} ranks, K = {patch_size}: traced {trace.peak_bytes / 1e9:6.2f} GB in "
          f"{trace.seconds:.0f} s, told {told.peak / 1e9:6.2f} GB ({found['ratio']:.3f}), on a GPU "
          f"{on_gpu.peak / 1e9:6.2f} GB, {'fits' if found['fits'] else found['would_fit']}",
          flush=True)  # fmt: skip
    return found


if __name__ == "__main__":
    with one_line("traces.py"):
        main()
