"""The map of where patches win: the own runs beside the published ones.

    python benchmarks/map.py

Reads results/evidence/*.json and what the papers published (src/patchtrain/advice/published.json).
A point is a contender that differs from token level in K, its share of patches and the length of
their rows only, over the seeds that both have, each at its own best rate; its gain is what it ended
lower by. Of points that are alike the one with the most seeds is taken, of those with more than one
rate if there is such a one. Where there are points of several lengths that otherwise ask the same,
patches begin to win somewhere between the longest that lost and the next. Through the points on
code a plane is laid, and each is predicted by the others, which is set against rules of one number
or none. Writes results/map.json, and with matplotlib docs/map.svg.
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
from patchtrain.plan import PlanSpec

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "results" / "evidence"
OUT = ROOT / "results" / "map.json"
FIGURE = ROOT / "docs" / "map.svg"
OF_A_PLAIN_ONE = {
    "plan.patch_size", "plan.step_fraction", "plan.patch_fraction", "plan.rows", "plan.stages",
    "plan.share_of", "plan.steps", "training.learning_rate",
}  # fmt: skip
# The share of patches: of the steps, or of the tokens.
SHARES = {"compute": "step_fraction", "data": "patch_fraction"}
# What points have in common that ask the same.
ALIKE = (
    "corpus", "vocab_size", "parameters", "tokens", "steps", "patch_size", "share", "rows",
)  # fmt: skip
CODE = {"python", "cpp"}  # of prose no point but one wins, which says nothing of where others would
MARKERS = {2: "o", 3: "^", 4: "s", 6: "D", 8: "v"}  # by K
PUBLISHED = {"compute": "black", "data": "white", "nothing": "grey"}  # by what was held equal
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
    own = {held: own_points(args.kept, held) for held in SHARES}
    if not own["compute"]:
        raise SystemExit(f"map.py: no comparison in {args.kept}; evidence.py trains them")
    found = {
        **about("map", "compute; rows_at_equal_data: data"),
        "settings": {},
        "rows": own["compute"],
        "rows_at_equal_data": own["data"],
        "published": published_points(),
        "begins": begins(own["compute"]),
        "fit": plane(own["compute"]),
    }
    write(args.out, found)
    draw(found, args.figure)
    print(f"written to {args.figure}")


def own_points(kept: Path, held_equal: str) -> list[dict[str, Any]]:
    """The plain contenders of all studies in a folder; of those that are alike, the most tried."""
    found = [point for file in sorted(kept.glob("*.json")) for point in of_study(file, held_equal)]
    taken: dict[tuple[Any, ...], dict[str, Any]] = {}

    def tried(point: dict[str, Any]) -> tuple[bool, int, int]:
        return point["rates"] > 1, point["seeds"], point["rates"]

    for point in sorted(found, key=tried):
        taken[tuple(point[key] for key in ALIKE)] = point
    return [point for _, point in sorted(taken.items())]


def of_study(file: Path, held_equal: str) -> list[dict[str, Any]]:
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
        settings = plain(arm["recipe"], token["recipe"], study["recipe"]["plan"], held_equal)
        if not gains or study["held_equal"] != held_equal or settings is None:
            continue
        base = token["runs"][0]
        found.append({
            "study": file.stem,
            "corpus": re.sub(r"-(\d+k?|bytes)$", "", study["about"]["corpus"]),  # of stores' names
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


def plain(
    entries: Mapping[str, Any],
    reference: Mapping[str, Any],
    plan: Mapping[str, Any],
    held_equal: str = "compute",
) -> dict[str, Any] | None:
    """K, share and rows of a contender that is patches of one K, then tokens, and nothing else.

    Args:
        entries: what the contender changes in the recipe.
        reference: what its token-level training changes.
        plan: the recipe's.
        held_equal: compute or data.
    """
    for path in entries.keys() - OF_A_PLAIN_ONE:
        unused = [reference.get(path), None]
        if path.startswith("plan."):
            unused.append(getattr(PlanSpec, path.removeprefix("plan."), None))
        if entries[path] not in unused:
            return None
    share_of = SHARES[held_equal]
    if entries.get("plan.stages"):
        steps = entries.get("plan.share_of") == "steps"
        shares = entries["plan.stages"] if steps and held_equal == "compute" else None
        found = of_stages(shares, plan["context_length"])
    else:
        share = entries.get(f"plan.{share_of}", plan.get(share_of))
        rows = entries.get("plan.rows") or "positions"
        found = entries.get("plan.patch_size", 1), share, rows
    if found is None or found[0] == 1 or not found[1]:
        return None
    return dict(zip(("patch_size", "share", "rows"), found, strict=True))


def of_stages(stages: Sequence[Any] | None, context_length: int) -> tuple[int, float, str] | None:
    """The same of a list of stages, where it says no more than K, r and rows do."""
    if stages is None or [next(iter(other), None) for other in stages[1:]] != [1]:
        return None
    first = stages[0]
    if not isinstance(first, Mapping):
        first = dict(zip(("patch_size", "share"), first, strict=True))
    K, T = first["patch_size"], first.get("context_length", context_length)
    rows = {context_length: "positions", context_length / K: "tokens"}.get(T)
    if rows is None or first.keys() - {"patch_size", "share", "context_length"}:
        return None
    return K, first["share"], rows


def published_points() -> list[dict[str, Any]]:
    """Gains of the papers, one run each: at equal compute, at equal data, and at neither."""
    values = published.published()
    found = [
        {"held_equal": held, "parameters": pair.parameters, "tokens": pair.tokens,
         "patch_size": values[f"equal_{held}"]["patch_size"], "gain": pair.gain}
        for held, pairs in (
            ("compute", published.equal_compute_pairs()),
            ("data", published.equal_data_pairs()),
        )
        for pair in pairs
    ]  # fmt: skip
    for row in values["not_equal_compute"]["rows"]:
        found.append({
            "held_equal": row["held_equal"],
            "parameters": row["parameters"],
            "tokens": row.get("tokens") or row["token_tokens"],
            "patch_size": row["patch_size"],
            "gain": row["token_loss"] - row["patch_loss"],
        })  # fmt: skip
    return found


def begins(own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Between which lengths, in tokens at token level, patches begin to win; one a setting.

    ``lost`` is the longest that lost, ``won`` the shortest after it; None where there is none.
    """
    what = [key for key in ALIKE if key not in ("tokens", "steps")]
    by_setting: dict[tuple[Any, ...], dict[int, bool]] = {}
    for point in own:
        key = tuple(point[name] for name in what)
        by_setting.setdefault(key, {})[point["tokens"]] = point["gain"] > 0
    found = []
    for key, won in sorted(by_setting.items()):
        if len(won) > 1:
            lost = max((tokens for tokens, wins in won.items() if not wins), default=None)
            after = [tokens for tokens, wins in won.items() if wins and tokens > (lost or 0)]
            found.append(
                {**dict(zip(what, key, strict=True)), "lost": lost, "won": min(after, default=None)}
            )
    return found


def plane(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The gain over -ln(1 - r) on code, a plane in the logs of size, length, K and vocabulary.

    Token level falls about as the logarithm of its compute, so giving up a share r of it costs so
    much a unit of -ln(1 - r); the plane says what is left after what patches taught. Errors, in
    that unit too, are those of each point from the plane through all others.
    """
    fitted = [point for point in own if point["rates"] > 1 and point["corpus"] in CODE]
    X, y = columns(fitted), np.array([unit_gain(point) for point in fitted])
    # As many again as it has terms, and each of them varied; else it would only repeat the points.
    if len(fitted) < 2 * len(TERMS) or np.linalg.matrix_rank(X) < len(TERMS):
        return {"points": len(fitted), "terms": None}
    return {
        "points": len(fitted),
        "terms": dict(zip(TERMS, Fit(X, y).coefficients.tolist(), strict=True)),
        "left_out": errors(X, y),
        "always_loses": int((y <= 0).sum()),
        "from_tokens": threshold(fitted),
    }


def threshold(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The number of tokens from which on patches win, where no other says more points' signs."""
    lengths = sorted({point["tokens"] for point in own})
    ends = [(shorter * longer) ** 0.5 for shorter, longer in itertools.pairwise(lengths)]

    def right(tokens: float) -> int:
        return sum((point["gain"] > 0) == (point["tokens"] > tokens) for point in own)

    tokens = max(ends, key=right)
    return {"tokens": tokens, "same_sign": right(tokens)}


def columns(points: Sequence[dict[str, Any]]) -> np.ndarray:
    """(P, F), the columns ``TERMS``."""
    return np.array([
        [1.0, math.log(point["tokens"] / point["parameters"]), math.log(point["parameters"]),
         math.log(point["patch_size"]), math.log(point["vocab_size"]),
         float(point["rows"] == "tokens")]
        for point in points
    ])  # fmt: skip


def unit_gain(point: dict[str, Any]) -> float:
    return float(point["gain"]) / -math.log(1 - point["share"])


def errors(X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Of each point (P,) from the plane through the others, where they make one.

    A point that alone has a value of some term cannot be predicted, nor counted.
    """
    off = np.full(len(y), np.nan)
    for number in range(len(y)):
        kept = np.arange(len(y)) != number
        if np.linalg.matrix_rank(X[kept]) == X.shape[1]:
            off[number] = y[number] - X[number] @ Fit(X[kept], y[kept]).coefficients
    known = ~np.isnan(off)
    return {
        "points": int(known.sum()),
        "rms": float(np.sqrt(np.mean(off[known] ** 2))) if known.any() else None,
        "same_sign": int(((y - off)[known] * y[known] > 0).sum()),
    }


def draw(found: dict[str, Any], file: Path) -> None:
    """Gain over tokens per parameter: own points by text, K and rows, and published ones."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    # The same bytes each time, and letters that follow the reader's fonts.
    matplotlib.rcParams.update({"svg.hashsalt": "map", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(7.6, 4.6), layout="constrained")
    own = [(point, 2.0) for point in found["rows"]]
    own += [(point, 0.7) for point in found["rows_at_equal_data"]]
    texts = sorted({point["corpus"] for point, _ in own})
    colors = {text: f"C{number}" for number, text in enumerate(texts)}
    for point, edge in own:
        color = colors[point["corpus"]]
        axes.scatter(point["tokens"] / point["parameters"], point["gain"], alpha=0.75,
                     marker=MARKERS[point["patch_size"]], s=18 + 8 * point["seeds"],
                     edgecolors=color, linewidths=edge,
                     facecolors="none" if point["rows"] == "tokens" else color)  # fmt: skip
    for point in found["published"]:
        axes.scatter(
            point["tokens"] / point["parameters"],
            point["gain"],
            marker="*",
            s=60,
            color=PUBLISHED[point["held_equal"]],
            edgecolors="black",
            linewidths=0.5,
        )

    def mark(label: str, color: str = "grey", marker: str = "o", **more: Any) -> Line2D:
        settings = {"linestyle": "none", "markersize": 5, "label": label, **more}
        return Line2D([], [], color=color, marker=marker, **settings)

    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), handles=[
        *(mark(text, color) for text, color in colors.items()),
        *(mark(f"K = {K}", marker=marker) for K, marker in MARKERS.items()),
        mark("rows of as many tokens", markerfacecolor="none"),
        *([mark("thin: own, equal data", markeredgewidth=0.7, markerfacecolor="none")]
          * bool(found["rows_at_equal_data"])),
        *(mark(f"published, equal {held}", color, "*", markeredgecolor="black",
               markeredgewidth=0.5, markersize=8) for held, color in PUBLISHED.items()),
    ])  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="tokens per parameter (token level)")
    axes.set_yscale("symlog", linthresh=0.02)
    axes.margins(y=0.1)
    axes.set_ylabel("gain of patches first, nats a token")
    with whole_file(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
