"""How a step's time and memory grow: with model, context, K, vocabulary, processes and corpus.

One number is varied at a time, the others stay at a base case; each case is a short run of
`PatchTrainer` in processes of its own. Given are the median time of a step and the peak of resident
memory beyond what the libraries take (of the first process; Linux only), and of each curve the
exponent: the slope of a straight line through the logarithms. Flat is 0, proportional 1.

    python benchmarks/scaling.py                  about ten minutes on two cores
    python benchmarks/scaling.py --only patch_size --steps 3 --width 64 --layers 1 --out s.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, status, write

CURVES: dict[str, tuple[int, ...]] = {
    "width": (128, 192, 256, 384, 512),
    "context_length": (64, 128, 256, 512, 1024),
    "patch_size": (1, 2, 4, 8, 16),
    "vocabulary": (1024, 4096, 16384, 65536),
    "processes": (1, 2, 4),
    "corpus_tokens": (10**6, 10**7, 10**8, 10**9),
}
WARM_UP = 2  # steps not timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=8, help="sequences a step, over all processes")
    parser.add_argument("--corpus-tokens", type=int, default=10**7)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a case")
    parser.add_argument("--threads", type=int, default=1, help="of a process")
    parser.add_argument("--only", nargs="+", choices=list(CURVES), help="some of the curves")
    parser.add_argument("--most", type=int, metavar="N", help="leave out larger values")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        run_case(json.loads(args.case))
        return
    names = ("width", "layers", "context_length", "patch_size", "vocabulary", "rows",
             "corpus_tokens", "steps", "threads")  # fmt: skip
    base = {name: getattr(args, name) for name in names} | {"processes": 1}
    rows = [
        measure(name, value, {**base, name: value})
        for name in args.only or CURVES
        for value in CURVES[name]
        if args.most is None or value <= args.most
    ]
    result = about("scaling", "all but the number named, on one machine")
    result["settings"] = base | {"seed": 0}
    result["rows"] = rows
    result["exponents"] = {
        name: {
            key: exponent([row[x] for row in rows if row["varied"] == name],
                          [row[key] for row in rows if row["varied"] == name])
            for key in ("seconds", "peak_bytes")
        }
        for name, x in ((name, "parameters" if name == "width" else "value")
                        for name in args.only or CURVES)
    }  # fmt: skip
    write(args.out, result)


def measure(name: str, value: int, case: dict[str, Any]) -> dict[str, Any]:
    """One point of a curve, taken in processes of its own."""
    command = [sys.executable]
    if case["processes"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone",
                    "--nproc_per_node", str(case["processes"])]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="scaling-benchmark-") as folder:
        case = {**case, "folder": folder}
        environment = {**os.environ, "OMP_NUM_THREADS": str(case["threads"])}
        done = subprocess.run([*command, __file__, "--case", json.dumps(case)],
                              env=environment, capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name} = {value} failed:\n{done.stderr[-3000:]}")
        found = json.loads((Path(folder) / "found.json").read_text())
    row = {
        "varied": name, "value": value, "parameters": found["parameters"],
        "seconds": statistics.median(found["seconds"]),
        "seconds_spread": [min(found["seconds"]), max(found["seconds"])],
        "peak_bytes": found["peak_bytes"],
    }  # fmt: skip
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:9.1f} MB"
    print(f"{name:15} {value:13,} {row['seconds']:8.3f} s {memory}", flush=True)
    return row


def exponent(x: Sequence[float], y: Sequence[float | None]) -> float | None:
    """The slope of a straight line through the logarithms."""
    if len(x) < 2 or any(value is None or value <= 0 for value in y):
        return None
    a, b = [math.log(value) for value in x], [math.log(value) for value in y if value]
    return float(np.polyfit(a, b, 1)[0])


def run_case(case: dict[str, Any]) -> None:
    """A few steps of `PatchTrainer`; the first process writes what it found."""
    from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

    from patchtrain import PatchConfig, PatchTrainer

    torch.manual_seed(0)
    first = os.environ.get("RANK", "0") == "0"
    before = resident_now()
    config = LlamaConfig(
        vocab_size=case["vocabulary"], hidden_size=case["width"],
        intermediate_size=case["width"] * 8 // 3 // 32 * 32, num_hidden_layers=case["layers"],
        num_attention_heads=case["width"] // 64, num_key_value_heads=case["width"] // 64,
        max_position_embeddings=case["context_length"], use_cache=False,
    )  # fmt: skip
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    args = PatchConfig(
        output_dir=case["folder"] + "/run", use_cpu=True, disable_tqdm=True, report_to="none",
        save_strategy="no", eval_strategy="no", logging_strategy="no", log_level="error",
        per_device_train_batch_size=case["rows"] // case["processes"],
        plan={
            "preset": "paper", "context_length": case["context_length"],
            "tokens_per_step": case["rows"] * case["context_length"], "hold": "compute",
            "stages": [[case["patch_size"], 1.0]], "steps": case["steps"] + WARM_UP + 1,
            "max_epochs": 1000.0,
        },
    )  # fmt: skip
    trainer = PatchTrainer(LlamaForCausalLM(config), args, tokens_of(case), callbacks=[Clock()])
    trainer.train()
    if first:
        peak = None if before is None else status("VmHWM") - before
        seconds = [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP:]
        parameters = sum(p.numel() for p in trainer.model.parameters())
        found = {"seconds": seconds, "peak_bytes": peak, "parameters": parameters}
        (Path(case["folder"]) / "found.json").write_text(json.dumps(found))
    trainer.accelerator.end_training()


def tokens_of(case: dict[str, Any]) -> np.ndarray:
    """A memory-mapped file of token ids, all zero: what they are costs nothing. It is sparse."""
    file = Path(case["folder"]) / f"tokens-{os.environ.get('RANK', '0')}.bin"
    file.touch()
    os.truncate(file, 2 * case["corpus_tokens"])
    return np.memmap(file, dtype=np.uint16, mode="r")


def resident_now() -> int | None:
    """Bytes resident, of which the peak begins anew; None where the system does not tell."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")
    return status("VmRSS")


if __name__ == "__main__":
    main()
