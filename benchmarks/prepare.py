"""How fast `patchtrain prepare` is, and whether its memory stays flat.

Speed: the time of `prepare` against a bare `tokenizers.encode_batch` loop on the same documents
with the same tokenizer, alternating, in the same run. Memory: the peak of a process that prepares a
small and one that prepares a large text, both ways of getting a tokenizer (loaded, trained).

The text is made of the Python standard library's sources, its lines shuffled between files, so
nothing is downloaded.

    python benchmarks/prepare.py --out results/prepare.json            50 MB and 1 GB
    python benchmarks/prepare.py --out /tmp/p.json --small 5 --large 50 --speed 5 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from patchtrain.machine import cpu_model

PARTS, WAYS = ["speed", "memory"], ["loaded", "trained"]
PACKAGES = ("patchtrain", "tokenizers", "transformers", "numpy", "datasets", "pyarrow")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/prepare.json"))
    parser.add_argument("--speed", type=int, default=50, metavar="MB", help="text for the speed")
    parser.add_argument("--small", type=int, default=50, metavar="MB", help="for the memory")
    parser.add_argument("--large", type=int, default=1000, metavar="MB", help="for the memory")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3, help="of the speed, alternating")
    parser.add_argument("--parts", nargs="+", choices=("speed", "memory"), default=PARTS)
    parser.add_argument("--ways", nargs="+", choices=("loaded", "trained"), default=WAYS,
                        help="of getting a tokenizer, for the memory")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="prepare-benchmark-") as name:
        folder = Path(name)
        sizes = {args.speed} if "speed" in args.parts else set()
        sizes |= {args.small, args.large} if "memory" in args.parts else set()
        files = {size: make_text(folder, size) for size in sizes}
        say(f"training a tokenizer with {args.vocab_size} entries")
        tokenizer = train_tokenizer(folder, files[min(files)], args.vocab_size)
        result: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in PACKAGES},
            "machine": machine(),
            "text": "shuffled lines of the Python standard library, one plain text file",
            "tokenizer": f"bpe, {args.vocab_size} entries",
        }
        if "speed" in args.parts:
            result["speed"] = measure_speed(folder, files[args.speed], tokenizer, args.repeats)
        if "memory" in args.parts:
            ways = {
                "loaded": ["--tokenizer", str(tokenizer)],
                "trained": ["--train-tokenizer", "bpe", "--vocab-size", str(args.vocab_size)],
            }
            result["memory"] = [
                measure_memory(folder, files[args.small], files[args.large], ways[way])
                for way in args.ways
            ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({part: result[part] for part in args.parts}, indent=2))
    print(f"written to {args.out}")


def make_text(folder: Path, megabytes: int) -> Path:
    """A text file of ``megabytes``: lines of the standard library, shuffled anew each time."""
    from patchtrain.data.sources import read_documents

    say(f"making {megabytes} MB of text")
    lines = [line for text in read_documents(["stdlib"]) for line in text.splitlines(True)]
    chosen, file, size = random.Random(megabytes), folder / f"{megabytes}.txt", 0
    with file.open("w", encoding="utf-8") as out:
        while size < megabytes * 1_000_000:
            chosen.shuffle(lines)
            for line in lines:
                if size >= megabytes * 1_000_000:
                    break
                size += len(line.encode())
                out.write(line)
    return file


def train_tokenizer(folder: Path, file: Path, vocab_size: int) -> Path:
    from patchtrain.data.sources import open_corpus
    from patchtrain.data.tokenizer import train

    texts = open_corpus([file]).documents(cut=True)
    train("bpe", texts, vocab_size).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def measure_speed(folder: Path, file: Path, tokenizer: Path, repeats: int) -> dict[str, Any]:
    """MB/s of a bare loop and of ``prepare``, alternating; the ratio of the medians.

    The loop encodes the very documents ``prepare`` makes, already in memory, and drops the result.
    ``prepare`` reads, hashes, counts and writes besides; the time to start Python and to load the
    tokenizer counts for neither.
    """
    from patchtrain.data.prepare import prepare
    from patchtrain.data.sources import open_corpus
    from patchtrain.data.tokenizer import encoder, load

    bare = encoder(load(tokenizer))
    megabytes = file.stat().st_size / 1e6
    documents = list(open_corpus([file]).documents(cut=True))
    batches = [documents[i : i + 128] for i in range(0, len(documents), 128)]
    loop_seconds, prepare_seconds, whole_seconds = [], [], []
    for number in range(repeats):
        say(f"speed, {number + 1} of {repeats}")
        started = time.perf_counter()
        for batch in batches:
            bare.encode_batch(batch, add_special_tokens=False)
        loop_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        store = prepare([file], folder / "speed", tokenizer=tokenizer, overwrite=True)
        whole_seconds.append(time.perf_counter() - started)
        prepare_seconds.append(store.meta["made"]["encoding_seconds"])
    speed = {
        "encode_batch_mb_per_s": megabytes / statistics.median(loop_seconds),
        "prepare_mb_per_s": megabytes / statistics.median(prepare_seconds),
        "prepare_with_start_and_end_mb_per_s": megabytes / statistics.median(whole_seconds),
    }
    ratio = speed["prepare_mb_per_s"] / speed["encode_batch_mb_per_s"]
    whole = speed["prepare_with_start_and_end_mb_per_s"] / speed["encode_batch_mb_per_s"]
    return {
        "megabytes": round(megabytes, 1),
        "repeats": repeats,
        **{key: round(value, 2) for key, value in speed.items()},
        "ratio": round(ratio, 3),
        "ratio_with_start_and_end": round(whole, 3),
        "seconds": {
            "encode_batch": [round(value, 2) for value in loop_seconds],
            "prepare": [round(value, 2) for value in prepare_seconds],
        },
    }


def measure_memory(folder: Path, small: Path, large: Path, how: list[str]) -> dict[str, Any]:
    """Peak resident memory of two processes, one for each text, and their ratio."""
    peaks = []
    for file in (small, large):
        say(f"memory, {file.stat().st_size / 1e6:.0f} MB, {how[0]}")
        peaks.append(peak_megabytes(file, folder / "memory", how))
    return {
        "tokenizer": how[0].removeprefix("--"),
        "small_text_mb": round(small.stat().st_size / 1e6, 1),
        "large_text_mb": round(large.stat().st_size / 1e6, 1),
        "small_peak_mb": peaks[0],
        "large_peak_mb": peaks[1],
        "ratio": round(peaks[1] / peaks[0], 3),
    }


_CHILD = """
import resource, sys
from patchtrain.cli import main
main.COMMANDS = ("prepare",)
code = main.main()
try:  # getrusage would also count the peak of the process that started this one
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
print("peak", peak / 1e6)
sys.exit(code)
"""


def peak_megabytes(file: Path, out: Path, how: list[str]) -> float:
    command = [sys.executable, "-c", _CHILD, "prepare", str(file), "--out", str(out), "--overwrite"]
    done = subprocess.run([*command, *how], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"prepare failed: {done.stderr}")
    return round(float(done.stdout.rsplit("peak", 1)[1]), 1)


def machine() -> dict[str, Any]:
    return {"system": platform.system(), "processor": cpu_model(), "cores": os.cpu_count()}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
