"""What the K-target loss costs: time and peak memory of forward and backward, from hidden states.

Every loss backend against two ways of doing without one:

    papers   the papers' formula: all logits in fp32, their log-softmax, K gathers
    passes   all logits, and one cross-entropy for each of the K targets

and, where our own function takes its matrix products from oneDNN (products.py), against the same
function with torch's products (`chunked-mm`), to tell the two gains apart; for several vocabularies
and patch sizes, on the same inputs, in one run. Times alternate between
the methods and patch sizes, so that what else the machine does falls on all; given is the median
(the papers' formula and our own function take part in every round, the others in every second).
Memory is the peak beyond inputs and gradients: on a GPU of the allocator, on a CPU of the resident
size of a fresh process that does it once (Linux only).

    python benchmarks/loss.py                                      one core, about twenty minutes
    python benchmarks/loss.py --vocabularies 4096 --patch-sizes 2 4 --rows 256 --out /tmp/loss.json
    python benchmarks/loss.py --device cuda --dtype bfloat16 --out results/loss-gpu.json
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from common import about, one_line, status, synchronize, write
from torch import Tensor

from patchtrain import products
from patchtrain.loss import patch_loss
from patchtrain.loss_backends import LOSSES, unavailable

VERY_SLOW = 20.0  # seconds of a step: such a method has one step, at the first K
VOCABULARIES, PATCH_SIZES = [4096, 32000, 131072], [1, 2, 4, 8, 16]
MOST_LOGITS = 2**26  # of a case: 2,048 rows at a vocabulary of 32,000
BASELINES, WITH_MM = ["papers", "passes"], "chunked-mm"


def papers(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The papers' formula."""
    logits = F.linear(hidden, weight).float()
    return -logits.log_softmax(-1).gather(-1, targets).mean()


def passes(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """One cross-entropy a target, as an existing loop would write it."""
    logits = F.linear(hidden, weight).float()
    losses = [F.cross_entropy(logits, target) for target in targets.unbind(-1)]
    return torch.stack(losses).mean()


def chunked_with_mm(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Our own function with torch's matrix products."""
    with mock.patch.object(products, "prefers_onednn", return_value=False):
        return patch_loss(hidden, weight, targets)  # the gradients come with the loss


def method(name: str) -> Callable[..., Tensor]:
    others = {"papers": papers, "passes": passes, WITH_MM: chunked_with_mm}
    return others.get(name) or LOSSES[name]


def runs_here(name: str, device: str) -> bool:
    if name == WITH_MM:
        return device == "cpu" and products.prefers_onednn()
    return name not in LOSSES or not unavailable(name, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/loss.json"))
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES, metavar="V")
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=PATCH_SIZES, metavar="K")
    known = [*BASELINES, WITH_MM, *LOSSES]
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=known,
                        help=f"of {', '.join(known)}; default: all that run here")  # fmt: skip
    parser.add_argument("--rows", type=int, default=2048, help="positions; fewer where rows "
                        f"times vocabulary would be above {MOST_LOGITS:,}")  # fmt: skip
    parser.add_argument("--width", type=int, default=512, help="hidden size")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", nargs=3, metavar=("NAME", "V", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        name, vocab, patch_size = args.memory_of
        print(resident_peak(name, make(args, int(vocab), int(patch_size))))
        return
    names = args.methods or [name for name in known if runs_here(name, args.device)]
    rows = []
    for vocab in args.vocabularies:
        rows += measure(args, names, vocab)
    result = about("loss", "inputs, targets and machine; all methods give the same", args.device)
    result["settings"] = {
        "rows": args.rows, "most_logits": MOST_LOGITS, "width": args.width, "dtype": args.dtype,
        "device": args.device, "threads": args.threads, "repeats": args.repeats, "seed": 0,
    }  # fmt: skip
    result["rows"] = rows
    write(args.out, result)


def measure(args: argparse.Namespace, names: list[str], vocab: int) -> list[dict[str, Any]]:
    """One row of results for each patch size and method, at one vocabulary."""
    cases = [(patch_size, name) for patch_size in args.patch_sizes for name in names]
    data = {patch_size: make(args, vocab, patch_size) for patch_size in args.patch_sizes}
    seconds: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    losses: dict[tuple[int, str], float] = {}
    first, very_slow = args.patch_sizes[0], set()
    for name in names:
        taken, loss = step(name, data[first])  # warms up
        if taken > VERY_SLOW and not matters(name, names):
            very_slow.add(name)
            seconds[first, name], losses[first, name] = [taken], loss
    cases = [case for case in cases if case[1] not in very_slow or case[0] == first]
    for number in range(args.repeats):
        for K, name in cases:
            # The slow others are in every second round only.
            if matters(name, names) or (number % 2 == 0 and name not in very_slow):
                taken, losses[K, name] = step(name, data[K])
                seconds[K, name].append(taken)
    tolerance = 1e-4 if args.dtype == "float32" else 1e-2
    for (K, name), loss in losses.items():
        want = losses[K, names[0]]
        if abs(loss - want) > tolerance * abs(want):
            raise SystemExit(f"{name} gives {loss}, {names[0]} {want}: not comparable")
    data.clear()
    rows: list[dict[str, Any]] = []
    for K, name in cases:
        row = {
            "vocab": vocab, "patch_size": K, "method": name,
            "rows": min(args.rows, MOST_LOGITS // vocab),
            "seconds": statistics.median(seconds[K, name]),
            "seconds_spread": [min(seconds[K, name]), max(seconds[K, name])],
            "peak_bytes": peak(args, name, vocab, K, args.repeats if matters(name, names) else 1),
            "loss": losses[K, name],
        }  # fmt: skip
        base = row if name == names[0] else next(r for r in rows if r["patch_size"] == K)
        row["ratio_seconds"] = row["seconds"] / base["seconds"]
        row["ratio_peak"] = row["peak_bytes"] / base["peak_bytes"] if base["peak_bytes"] else None
        rows.append(row)
        memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:8.1f} MB"
        print(f"V={vocab:6} K={K:2} {name:8} {row['seconds']:8.3f} s "
              f"{row['ratio_seconds']:5.2f} {memory}", flush=True)  # fmt: skip
    return rows


def matters(name: str, names: list[str]) -> bool:
    """Whether a method is one of the two that the targets speak of."""
    return name in (names[0], "chunked")


def make(args: argparse.Namespace, vocab: int, patch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, the head's weight and K targets a position; the same for the same case."""
    generator = torch.Generator().manual_seed(0)
    rows, dtype = min(args.rows, MOST_LOGITS // vocab), getattr(torch, args.dtype)
    hidden = torch.randn(rows, args.width, generator=generator)
    weight = torch.randn(vocab, args.width, generator=generator) / args.width**0.5
    targets = torch.randint(0, vocab, (rows, patch_size), generator=generator)
    return (
        hidden.to(args.device, dtype).requires_grad_(),
        weight.to(args.device, dtype).requires_grad_(),
        targets.to(args.device),
    )


def step(name: str, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Seconds of one forward and backward, and the loss."""
    hidden, weight, _ = inputs
    hidden.grad = weight.grad = None
    synchronize(str(hidden.device))
    begin = time.perf_counter()
    loss = method(name)(*inputs)
    loss.backward()  # type: ignore[no-untyped-call]
    synchronize(str(hidden.device))
    return time.perf_counter() - begin, float(loss.detach())


def peak(
    args: argparse.Namespace, name: str, vocab: int, patch_size: int, repeats: int
) -> int | None:
    """Bytes at the peak of one forward and backward, beyond inputs and gradients."""
    if args.device != "cpu":
        inputs = make(args, vocab, patch_size)
        step(name, inputs)
        inputs[0].grad = inputs[1].grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(name, inputs)
        return torch.cuda.max_memory_allocated() - before - gradient_bytes(inputs)
    if not Path("/proc/self/clear_refs").exists():
        return None
    arguments = ["--memory-of", name, str(vocab), str(patch_size), "--rows", str(args.rows),
                 "--width", str(args.width), "--dtype", args.dtype]  # fmt: skip
    command = [sys.executable, __file__, *arguments, "--threads", str(args.threads)]
    found = [
        int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    ]
    return statistics.median_low(found)


def resident_peak(name: str, inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    """The same of this process, from its resident size. Linux."""
    few = tuple(tensor.detach()[:64].clone().requires_grad_(tensor.is_floating_point())
                for tensor in (inputs[0], inputs[1]))  # fmt: skip
    step(name, (few[0], few[1], inputs[2][:64] % 64))  # what is allocated only once
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = status("VmRSS")
    step(name, inputs)
    return max(status("VmHWM") - before - gradient_bytes(inputs), 0)


def gradient_bytes(inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs[:2])


if __name__ == "__main__":
    with one_line("loss.py"):
        main()
