"""The project's own comparisons, from results/ to what the advice ships.

Takes the points of the map (results/map.json, which benchmarks/map.py makes of all studies) and
writes src/patchtrain/advice/own.json. The tests fail where the two no longer agree.

    python benchmarks/collect_points.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from patchtrain.files import write_text

ROOT = Path(__file__).parents[1]
MAP = ROOT / "results" / "map.json"
OUT = ROOT / "src" / "patchtrain" / "advice" / "own.json"
TEXTS = {"python": "Python sources", "cpp": "C++ headers"}  # others by their own names
PARTS = {"python-small"}  # of another text, which the advice would count twice
KEPT = (
    "vocab_size", "parameters", "tokens", "steps", "patch_size", "share", "rows", "rates", "gains",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--map", type=Path, default=MAP, help="what to read (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (%(default)s)")
    args = parser.parse_args()
    write_text(args.out, text(collect(args.map)))
    print(f"written to {args.out}")


def collect(file: Path) -> dict[str, Any]:
    """The comparisons of the map, with the gain of each seed, lost ones too."""
    found = json.loads(file.read_text(encoding="utf-8"))
    points = [(point, "compute") for point in found["rows"]]
    points += [(point, "data") for point in found["rows_at_equal_data"]]
    return {
        "about": "The project's own comparisons of token level and patches first in small models, "
        "each arm at its best of the rates tried. Gains in nats a token, one a seed.",
        "comparisons": [
            {
                "study": point["study"],
                "text": TEXTS.get(point["corpus"], point["corpus"]),
                "held_equal": held_equal,
                **{key: point[key] for key in KEPT},
            }
            for point, held_equal in points
            if point["corpus"] not in PARTS
        ],
    }


def text(points: dict[str, Any]) -> str:
    """As the file has it."""
    return json.dumps(points, indent=1) + "\n"


if __name__ == "__main__":
    main()
