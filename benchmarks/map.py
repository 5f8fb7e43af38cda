"""The map of where patches win at equal compute: the own runs beside the published ones.

    python benchmarks/map.py

Reads results/evidence/*.json and what the papers published (src/patchtrain/advice/published.json).
A point is a contender that differs from token level in K, r and the length of its rows of patches
only, over the seeds that both have, each at its own best rate; its gain is what it ended lower by.
Through the own points a plane is laid, and each corpus's points are predicted by the others. Writes
results/map.json, and with matplotlib docs/map.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import about, write

from patchtrain.advice import points as published
from patchtrain.advice.fits import Fit
from patchtrain.files import whole_file
from patchtrain.plan import CHOICES, PlanSpec

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "results" / "evidence"
OUT = ROOT / "results" / "map.json"
FIGURE = ROOT / "docs" / "map.svg"
OF_A_PLAIN_ONE = {
    "plan.patch_size", "plan.step_fraction", "plan.rows", "plan.stages", "plan.share_of",
    "plan.steps",
}  # fmt: skip
MARKERS = {2: "o", 3: "^", 4: "s", 6: "D", 8: "v"}  # by K
# Of the plane; the last is 1 where a row of patches has as many tokens as at token level, else 0.
TERMS = ("1", "ln(D / N)", "ln N", "ln K", "ln V", "[rows of as many tokens]")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=EVIDENCE, help="what to read (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the result (%(default)s)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="the drawing (%(default)s)")
    args = parser.parse_args()
    own = [point for file in sorted(args.kept.glob("*.json")) for point in own_points(file)]
    if not own:
        raise SystemExit(f"map.py: no comparison in {args.kept}; evidence.py trains them")
    found = {
        **about("map", "compute"),
        "settings": {},
        "rows": own,
        "published": published_points(),
        "fit": plane(own),
    }
    write(args.out, found)
    draw(found, args.figure)
    print(f"written to {args.figure}")


def own_points(file: Path) -> list[dict[str, Any]]:
    """The plain contenders of one study of evidence.yaml that have a pair of runs."""
    study = json.loads(file.read_text(encoding="utf-8"))
    arms = {arm["name"]: arm for arm in study["arms"]}
    contenders = {item["name"]: item for item in study["contenders"]}
    found = []
    for item in study["contenders"]:
        reference = contenders.get(item["reference"])
        if reference is None or not item["chosen"] or not reference["chosen"]:
            continue
        arm, token = arms[item["chosen"]], arms[reference["chosen"]]
        losses = {run["seed"]: run["loss"] for run in arm["runs"]}
        gains = [
            run["loss"] - losses[run["seed"]] for run in token["runs"] if run["seed"] in losses
        ]
        settings = plain(arm["recipe"], study["recipe"]["plan"]["context_length"])
        if not gains or study["held_equal"] != "compute" or settings is None:
            continue
        base = token["runs"][0]
        found.append({
            "study": file.stem,
            "corpus": re.sub(r"-(\d+|bytes)$", "", study["about"]["corpus"]),  # of stores' names
            "contender": item["name"],
            "parameters": base["parameters"],
            "body_parameters": base["body_parameters"],
            "vocab_size": base["vocab_size"],
            "tokens": base["total_tokens"],
            "steps": base["total_steps"],
            "epochs": statistics.fmean(run["epochs"] for run in arm["runs"]),
            **settings,
            "token_loss": statistics.fmean(run["loss"] for run in token["runs"]),
            "gain": statistics.fmean(gains),
            "gains": gains,
            "seeds": len(gains),
            "rates": sum(tried["bits_per_byte"] is not None for tried in item["tried"]),
            "edge": sorted({side["edge"] for side in (item, reference) if side.get("edge")}),
        })  # fmt: skip
    return found


def plain(entries: Mapping[str, Any], context_length: int) -> dict[str, Any] | None:
    """K, r and the rows of a contender that is patches of one K, then tokens, and nothing else."""
    for path in entries.keys() - OF_A_PLAIN_ONE:
        section, _, key = path.partition(".")
        if section == "plan" and entries[path] not in (None, getattr(PlanSpec, key, None)):
            return None
    if entries.get("plan.stages"):
        found = of_stages(entries, context_length)
    else:
        rows = entries.get("plan.rows") or "positions"
        found = entries.get("plan.patch_size", 1), entries.get("plan.step_fraction"), rows
    if found is None or found[0] == 1 or not found[1]:
        return None
    return dict(zip(("patch_size", "step_fraction", "rows"), found, strict=True))


def of_stages(entries: Mapping[str, Any], context_length: int) -> tuple[int, float, str] | None:
    """The same of a list of stages, where it says no more than K, r and rows do."""
    first, *others = entries["plan.stages"]
    if entries.get("plan.share_of") != "steps" or [next(iter(o), None) for o in others] != [1]:
        return None
    if not isinstance(first, Mapping):
        first = dict(zip(("patch_size", "share"), first, strict=True))
    K, T = first["patch_size"], first.get("context_length", context_length)
    rows = {context_length: "positions", context_length / K: "tokens"}.get(T)
    if rows is None or first.keys() - {"patch_size", "share", "context_length"}:
        return None
    return K, first["share"], rows


def published_points() -> list[dict[str, Any]]:
    """Gains of the papers, one run each: at equal compute and at equal data."""
    values = published.published()
    at_compute, at_data = values["equal_compute"], values["equal_data"]
    return [
        {"held_equal": held, "parameters": pair.parameters, "tokens": pair.tokens,
         "patch_size": table["patch_size"], "gain": pair.gain}
        for held, table, pairs in (
            ("compute", at_compute, published.equal_compute_pairs()),
            ("data", at_data, published.equal_data_pairs()),
        )
        for pair in pairs
    ]  # fmt: skip


def plane(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gain over -ln(1 - r) as a plane in the logarithms of size, length, K and vocabulary.

    Token level falls about as the logarithm of its compute, so giving up a share r of it costs so
    much a unit of -ln(1 - r); the plane says what is left after what patches taught. Errors, in
    that unit too, are those of each point from the plane through all others, and through those of
    other corpora.
    """
    fitted = [point for point in own if point["rates"] > 1]
    X, y = columns(fitted), np.array([unit_gain(point) for point in fitted])
    # As many again as it has terms, and each of them varied; else it would only repeat the points.
    if len(fitted) < 2 * len(TERMS) or np.linalg.matrix_rank(X) < len(TERMS):
        return {"points": len(fitted), "terms": None}
    corpora = np.array([point["corpus"] for point in fitted])
    return {
        "points": len(fitted),
        "terms": dict(zip(TERMS, Fit(X, y).coefficients.tolist(), strict=True)),
        "left_out": errors(np.arange(len(y)), X, y),
        "other_corpora": errors(corpora, X, y),
    }


def columns(points: Sequence[dict[str, Any]]) -> np.ndarray:
    """(P, F), the columns ``TERMS``."""
    return np.array([
        [1.0, math.log(point["tokens"] / point["parameters"]), math.log(point["parameters"]),
         math.log(point["patch_size"]), math.log(point["vocab_size"]),
         float(point["rows"] == "tokens")]
        for point in points
    ])  # fmt: skip


def unit_gain(point: dict[str, Any]) -> float:
    return float(point["gain"]) / -math.log(1 - point["step_fraction"])


def errors(groups: np.ndarray, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Of each group of points (P,) from the plane through the others, where they make one.

    A point that alone has a value of some term cannot be predicted, nor counted.
    """
    off = np.full(len(y), np.nan)
    for group in set(groups.tolist()):
        kept = groups != group
        if np.linalg.matrix_rank(X[kept]) == X.shape[1]:
            off[~kept] = y[~kept] - X[~kept] @ Fit(X[kept], y[kept]).coefficients
    known = ~np.isnan(off)
    return {
        "points": int(known.sum()),
        "rms": float(np.sqrt(np.mean(off[known] ** 2))) if known.any() else None,
        "same_sign": int(((y - off)[known] * y[known] > 0).sum()),
    }


def draw(found: dict[str, Any], file: Path) -> None:
    """Gain over tokens per parameter: own points by corpus, published ones at both equalities.

    A hollow marker: in rows of as many tokens.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # The same bytes each time, and letters that follow the reader's fonts.
    matplotlib.rcParams.update({"svg.hashsalt": "map", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(7.6, 4.2), layout="constrained")
    for number, corpus in enumerate(sorted({point["corpus"] for point in found["rows"]})):
        for (size, marker), rows in itertools.product(MARKERS.items(), CHOICES["rows"]):
            of = {"corpus": corpus, "patch_size": size, "rows": rows}
            chosen = [point for point in found["rows"] if of.items() <= point.items()]
            if chosen:
                color, hollow = f"C{number}", rows == "tokens"
                axes.scatter([point["tokens"] / point["parameters"] for point in chosen],
                             [point["gain"] for point in chosen], marker=marker,
                             s=[18 + 8 * point["seeds"] for point in chosen], alpha=0.75,
                             edgecolors=color, facecolors="none" if hollow else color,
                             label=f"{corpus}, K = {size}{', short rows' * hollow}")  # fmt: skip
    for held, color in (("compute", "black"), ("data", "grey")):
        chosen = [point for point in found["published"] if point["held_equal"] == held]
        axes.scatter([point["tokens"] / point["parameters"] for point in chosen],
                     [point["gain"] for point in chosen], marker="*", s=60, color=color,
                     label=f"published, 270M to 3B, equal {held}")  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="tokens per parameter (token level)")
    axes.set_yscale("symlog", linthresh=0.02)
    axes.margins(y=0.1)
    axes.set_ylabel("gain of patches first, nats a token")
    axes.legend(fontsize=7, loc="lower right")
    with whole_file(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
