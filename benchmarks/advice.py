"""How far the advice is off on published numbers that it has not seen.

Each group leaves measured points out (one, a row, a column, a whole model), fits the rest as
`patchtrain plan --advise` does and predicts what was left out. Nothing is trained: the numbers are
those that are shipped (src/patchtrain/advice/published.json), so this takes a second anywhere.

    python benchmarks/advice.py --out results/advice.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import about, write

from patchtrain.advice.fits import equal_compute, equal_data
from patchtrain.advice.held_out import predictions, summary
from patchtrain.advice.recommend import Scarce, advise

# Sizes and budgets that people have, and some that the papers had.
BUDGETS: list[tuple[int, int, Scarce]] = [
    (133_440, 8_192_000, "compute"),
    (166_000, 16_400_000, "compute"),
    (270_000_000, 42_000_000_000, "compute"),
    (1_300_000_000, 26_000_000_000, "compute"),
    (7_000_000_000, 140_000_000_000, "compute"),
    (370_000_000, 45_000_000_000, "data"),
    (370_000_000, 360_000_000_000, "data"),
    (1_300_000_000, 26_000_000_000, "data"),
    (1_300_000_000, 360_000_000_000, "data"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/advice.json"))
    args = parser.parse_args()
    found = predictions()
    data, compute = equal_data(), equal_compute()
    write(args.out, {
        **about("advice", "what each group's name says; gains and errors in nats a token"),
        "settings": {},
        "fits": {
            "equal_data": {
                "gain": "a + b ln(tokens / parameters)",
                "coefficients": data.fit.coefficients.tolist(),
                "break_even": data.break_even,
                "lambda": data.fractions.tolist(),
                "shift": data.shifts.tolist(),
            },
            "equal_compute": {
                "ln gain": "a + b ln(tokens / parameters)",
                "coefficients": compute.fit.coefficients.tolist(),
                "surface": compute.surface.fit.coefficients.tolist(),
            },
        },
        "rows": summary(found),
        "predictions": [prediction.to_dict() for prediction in found],
        "advised": [advise(*budget).to_dict() for budget in BUDGETS],
    })  # fmt: skip


if __name__ == "__main__":
    main()
