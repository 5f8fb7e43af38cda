"""How fast batches come from a memory-mapped store, against how fast training takes them.

The tokens are a file of random ids; the documents in it are simulated by offsets, so that 1 and 100
million of them need no such corpus. Measured, each in a fresh process: batches a second with the
files dropped from the page cache (cold: the kernel is asked to, with posix_fadvise) and again at
once (warm); the memory of the process that is not file pages (RssAnon; Linux). One batch is one
training step: half of them are of patch level, with K times the tokens, and a step takes as long at
either level. How long is measured in the same run, on the model of stages.py.

    python benchmarks/loader.py                      1 GB of tokens, a few minutes
    python benchmarks/loader.py --tokens 1000000 --documents 1000 5000 --batches 20 \
        --layers 1 --width 64 --rows 2 --out loader.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, spread, write
from stages import Bench, arguments

from patchtrain import PlanSpec
from patchtrain.data.batches import PlanBatches
from patchtrain.data.documents import AlignedDocuments

PATCH_SIZE, STATES = 8, ("cold", "warm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    parser.add_argument("--tokens", type=int, default=2**29)
    parser.add_argument("--documents", type=int, nargs="+", default=[10**6, 10**8], metavar="N")
    parser.add_argument("--batches", type=int, default=200, help="read in each measurement")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path("results/loader.json"))
    parser.add_argument("--read", nargs=3, metavar=("FOLDER", "N", "KIND"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(Path(args.read[0]), int(args.read[1]), args.read[2], args)))
        return
    torch.set_num_threads(args.threads)
    step_seconds = training_step(args)
    print(f"training takes {1 / step_seconds:,.1f} batches/s", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="loader-benchmark-") as name:
        folder = Path(name)
        make_tokens(folder, args.tokens, args.vocabulary)
        for documents in args.documents:
            make_offsets(folder, args.tokens, documents)
            for kind in ("mixed", "separate"):
                row = {"documents": documents, "kind": kind, **fresh(folder, documents, kind, args)}
                for state in STATES:
                    row[f"{state}_times_training"] = row[f"{state}_batches_per_s"] * step_seconds
                rows.append(row)
                rates = [f"{state} {row[f'{state}_batches_per_s']:,.0f}" for state in STATES]
                print(f"{documents:12,} documents, {kind:8} {' and '.join(rates)} batches/s, "
                      f"{row['anonymous_bytes'] / 1e6:,.0f} MB", flush=True)  # fmt: skip
    result = about("loader", "tokens, sequences a batch, machine", args.device)
    result["settings"] = {
        "tokens": args.tokens, "batches": args.batches, "rows_per_batch": args.rows,
        "context_length": args.context_length, "patch_size": PATCH_SIZE,
        "training_step_seconds": step_seconds, "threads": args.threads, "seed": 0,
    }  # fmt: skip
    result["rows"] = rows
    write(args.out, result)


def training_step(args: argparse.Namespace) -> float:
    """Seconds of a token-level step of the model."""
    bench = Bench(args)
    return spread(bench.at(1, bench.ids(1), repeats=args.repeats + 1)[1:])["median"]


def make_tokens(folder: Path, tokens: int, vocabulary: int) -> None:
    """A file of random uint16 ids, as a store's."""
    random = np.random.default_rng(0)
    with (folder / "tokens.bin").open("wb") as file:
        for begin in range(0, tokens, 1 << 24):
            part = random.integers(0, vocabulary, min(1 << 24, tokens - begin), dtype=np.uint16)
            part.tofile(file)


def make_offsets(folder: Path, tokens: int, documents: int) -> None:
    """Documents of random lengths that fill the tokens, at least one token each."""
    random = np.random.default_rng(1)
    with (folder / f"offsets-{documents}.bin").open("wb") as file:
        np.zeros(1, dtype=np.int64).tofile(file)
        for begin in range(0, documents, 1 << 22):
            end = min(begin + (1 << 22), documents)
            low, high = tokens * begin // documents, tokens * end // documents
            count = end - begin
            cuts = random.random(count) + 1e-3
            spare = high - low - count
            ends = low + np.floor(np.cumsum(cuts) / cuts.sum() * spare).astype(np.int64)
            ends += np.arange(1, count + 1)
            ends[-1] = high
            ends.tofile(file)


def fresh(folder: Path, documents: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """``read`` in a process of its own."""
    options = ["--tokens", args.tokens, "--batches", args.batches, "--rows", args.rows,
               "--context-length", args.context_length, "--threads", args.threads]  # fmt: skip
    command = [sys.executable, __file__, "--read", str(folder), str(documents), kind]
    done = subprocess.run([*command, *map(str, options)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"reading failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read(folder: Path, documents: int, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Batches and tokens a second, cold and warm, and this process's own memory."""
    files = [folder / "tokens.bin", folder / f"offsets-{documents}.bin"]
    tokens = np.memmap(files[0], dtype=np.uint16, mode="r")
    offsets = np.memmap(files[1], dtype=np.int64, mode="r")
    before = anonymous()
    begin = time.perf_counter()
    stream: Any = tokens
    if kind == "separate":
        stream = AlignedDocuments(tokens, offsets, PATCH_SIZE, start_token=0)
    opening = time.perf_counter() - begin
    spec = PlanSpec(
        context_length=args.context_length, tokens_per_step=args.rows * args.context_length,
        preset="superposition", patch_size=PATCH_SIZE, step_fraction=0.5, steps=args.batches,
        max_epochs=1e4, warmup_steps=1,
    )  # fmt: skip
    batches = PlanBatches(stream, spec.resolve(store_tokens=len(stream)), seed=0)
    found: dict[str, Any] = {"opening_seconds": opening}
    for state in STATES:
        if state == "cold":
            for file in files:
                drop(file)
        count = 0
        begin = time.perf_counter()
        for step in range(args.batches):
            count += batches.inputs(step)["input_ids"].size
        seconds = time.perf_counter() - begin
        found[f"{state}_batches_per_s"] = args.batches / seconds
        found[f"{state}_tokens_per_s"] = count / seconds
    return {**found, "anonymous_bytes": anonymous() - before}


def drop(file: Path) -> None:
    """Ask the kernel to forget the file's pages, where it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def anonymous() -> int:
    """Bytes of this process's memory that are not pages of files; 0 where that is not told."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


if __name__ == "__main__":
    main()
