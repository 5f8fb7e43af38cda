"""How bad input ends, over thousands of damaged recipes, stores, checkpoints and text files.

Each input is one call of the command line and must end in success or in one clear error, without a
traceback, a hang, a silent loss or anything left behind (``tests/fuzzing``). It lives among the
benchmarks because it takes minutes to hours, writes to results/ and is not part of the tests, which
try a few hundred such inputs themselves.

Input NUMBER of a kind depends on the seed and the number alone, so each can be repeated:

    python benchmarks/fuzz.py                            10,000 inputs
    python benchmarks/fuzz.py --inputs 500 --kinds text --seed 7
    python benchmarks/fuzz.py --only store:1234          one of them, and what came of it

A process of its own runs the inputs: one that hangs or dies is a finding too, and the next process
goes on after it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import about, write

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60  # of one input, before it counts as hanging
INPUTS_OF_A_PROCESS = 500
MEMORY = 8 << 30  # of the address space beyond what the process has when it begins
KINDS = ("recipe", "store", "text", "checkpoint")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one input and show it")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.json"))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        folder, kind, first, end = args.worker
        return work(Path(folder), kind, args.seed, int(first), int(end))
    with tempfile.TemporaryDirectory(prefix="patchtrain-fuzz-") as name:
        folder = Path(name)
        say("preparing a store and training a model for a few steps")
        worker(folder, "world", args.seed, 0, 0).wait()
        if args.only:
            kind, _, number = args.only.partition(":")
            for row in rows(folder, kind, args.seed, int(number), int(number) + 1):
                print(json.dumps(row, indent=1))
            return 0
        each = -(-args.inputs // len(args.kinds))
        tallies = {kind: run(folder, kind, args.seed, each) for kind in args.kinds}
    head = about("fuzz", held_equal="nothing: no comparison")
    findings = [finding for tally in tallies.values() for finding in tally.findings]
    counts = {
        kind: {key: value for key, value in asdict(tally).items() if key != "findings"}
        for kind, tally in tallies.items()
    }
    total = sum(tally.inputs for tally in tallies.values())
    write(args.out, head | {"seed": args.seed, "inputs": total, "kinds": counts,
                            "broken": len(findings), "findings": findings})  # fmt: skip
    say(f"{total:,} inputs, {len(findings)} of which broke the rule")
    return int(bool(findings))


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    inputs: int = 0
    succeeded: int = 0
    refused: int = 0
    """Exit code 2: what was asked for cannot be done."""
    failed: int = 0
    """Exit code 1: something is damaged."""
    different_errors: int = 0
    """Messages that are not the same but for names and numbers."""
    slowest_seconds: float = 0.0
    seconds: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


def run(folder: Path, kind: str, seed: int, inputs: int) -> Tally:
    """Run the inputs of one kind, with a line of progress now and then."""
    tally, begin, shown = Tally(), time.monotonic(), 0.0
    messages: Counter[str] = Counter()
    for row in rows(folder, kind, seed, 0, inputs):
        tally.inputs += 1
        if row["problems"]:
            tally.findings.append(row)
            say(f"{row['input']}: {'; '.join(row['problems'])}\n    {row['what']}")
            say(f"    again: python benchmarks/fuzz.py --seed {seed} --only {row['input']}")
        elif row["code"] == 0:
            tally.succeeded += 1
        elif row["code"] == 2:
            tally.refused += 1
        else:
            tally.failed += 1
        messages[re.sub(r"'[^']*'|\S*[/\d]\S*", "_", row["error"])] += 1
        tally.slowest_seconds = max(tally.slowest_seconds, row["seconds"])
        tally.seconds = round(time.monotonic() - begin, 1)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            say(f"{kind}: {tally.inputs:,} of {inputs:,}, {len(tally.findings)} broke the rule")
    tally.different_errors = len(messages)
    return tally


def rows(folder: Path, kind: str, seed: int, first: int, end: int) -> Iterator[dict[str, Any]]:
    """What came of each input, also of one that hangs or kills its process."""
    while first < end:
        child = worker(folder, kind, seed, first, min(end, first + INPUTS_OF_A_PROCESS))
        assert child.stdout is not None
        begun = ""
        while True:
            ready, _, _ = select.select([child.stdout], [], [], 3 * SECONDS)
            line = child.stdout.readline() if ready else b""
            if not line:
                break
            row = json.loads(line)
            if "begun" in row:
                begun = row["begun"]
                continue
            yield row
            first += 1
        late = child.poll() is None and not ready
        if late:
            child.kill()
        code = child.wait()
        if late or code:
            problem = f"hung for {3 * SECONDS} s" if late else f"the process ended with {code}"
            yield {"input": f"{kind}:{first}", "what": begun, "code": code, "error": "",
                   "seconds": 0.0, "problems": [problem]}  # fmt: skip
            first += 1


def worker(folder: Path, kind: str, seed: int, first: int, end: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--seed", str(seed), "--worker", str(folder), kind]
    return subprocess.Popen(
        [*command, str(first), str(end)],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        bufsize=0,
    )


def work(folder: Path, kind: str, seed: int, first: int, end: int) -> int:
    """In a process of its own: the inputs from ``first`` on, a line of JSON for each."""
    sys.path.insert(0, str(ROOT))
    from tests.fuzzing import KINDS as MAKERS
    from tests.fuzzing import judge, make_world, open_world

    if kind == "world":
        make_world(folder)
        return 0
    world = open_world(folder)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else writes between the lines
    _limit_memory()
    for number in range(first, end):
        begin, place = time.monotonic(), folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        case = MAKERS[kind](random.Random(f"{seed}:{kind}:{number}"), world, place)
        print(json.dumps({"begun": case.what}), file=out, flush=True)
        result = judge(case, SECONDS)
        row = {"input": f"{kind}:{number}", "what": case.what, "code": result.code,
               "error": result.error, "problems": result.problems,
               "seconds": round(time.monotonic() - begin, 3)}  # fmt: skip
        print(json.dumps(row), file=out, flush=True)
    return 0


def _limit_memory() -> None:
    """An input that asks for too much gets an error of its own, and the machine is left alone."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
