"""What came out of a study: every run, each arm's mean and spread, paired differences, curves.

The measure is bits per byte on the whole validation split, at token level, of the exported model:
it compares across tokenizers. Lower is better. A difference is an arm less the one that it is
compared with, seed by seed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchtrain.analysis.statistics import CONFIDENCE, paired, spread
from patchtrain.analysis.studies.study import Arm, Study, run_folder
from patchtrain.errors import PatchtrainError
from patchtrain.runs import RunFolder

Row = dict[str, Any]
_OF_THE_PLAN = ("total_tokens", "total_positions", "total_steps", "epochs")


def collect(study: Study, folder: Path, failed: Mapping[str, str]) -> Row:
    """The results of what is finished, JSON types.

    ``arms`` has for each arm its ``runs`` by seed, its ``bits_per_byte`` over them, and its
    ``differences`` by the arm it is compared with; each difference also has ``compute_to_match``:
    the share of that arm's compute after which this one had come down to that arm's last loss
    (None where it never did). That is on the way of a longer run; ``equal_loss`` compares ends.
    """
    done = {
        arm.name: {
            seed: info
            for seed in study.seeds
            if (info := finished(run_folder(folder, arm, seed))) is not None
        }
        for arm in study.arms
    }
    curves = {
        arm.name: {seed: _curve(run_folder(folder, arm, seed)) for seed in done[arm.name]}
        for arm in study.arms
    }
    measured = {
        name: {seed: float(info["result"]["bits_per_byte"]) for seed, info in infos.items()}
        for name, infos in done.items()
    }
    arms = [_arm(study, arm, done[arm.name], measured, curves) for arm in study.arms]
    first = next((info for infos in done.values() for info in infos.values()), {})
    return {
        **study.to_dict(),
        "confidence": CONFIDENCE,
        "complete": all(len(infos) == len(study.seeds) for infos in done.values()),
        "failed": dict(failed),
        "arms": arms,
        "versions": first.get("versions"),
        "machine": first.get("machine"),
        "counted": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


def _arm(
    study: Study,
    arm: Arm,
    infos: Mapping[int, Row],
    measured: Mapping[str, Mapping[int, float]],
    curves: Mapping[str, Mapping[int, list[Row]]],
) -> Row:
    own = measured[arm.name]
    described = next(item for item in study.to_dict()["arms"] if item["name"] == arm.name)
    differences = {}
    for other in arm.against:
        found = paired(own, measured[other])
        if found is not None:
            differences[other] = {
                "seeds": sorted(own.keys() & measured[other].keys()),
                "values": list(found.values),
                **found.to_dict(),
                "compute_to_match": _mean_match(curves[arm.name], curves[other]),
            }
    return {
        **described,
        "runs": [_run(seed, info) for seed, info in sorted(infos.items())],
        "bits_per_byte": spread(list(own.values())).to_dict() if own else None,
        "differences": differences,
        "curve": _band(list(curves[arm.name].values())),
    }


def finished(run: RunFolder) -> Row | None:
    """What a run says of itself if it got to its end, with a result; else None."""
    try:
        info = run.info()
    except (OSError, PatchtrainError):
        return None
    result = info.get("result")
    measured = isinstance(result, dict) and result.get("bits_per_byte") is not None
    return info if measured and info.get("status") == "finished" else None


def diverged(run: RunFolder) -> str | None:
    """What was no number any more in a run that ended so: trained again, it would end so again."""
    try:
        found = run.info().get("diverged")
    except (OSError, PatchtrainError):
        return None
    return None if found is None else str(found)


def _run(seed: int, info: Row) -> Row:
    model, result = info["model"], info["result"]
    return {
        "seed": seed,
        "bits_per_byte": result["bits_per_byte"],
        "loss": result["loss"],
        "flops": info["flops"],
        "seconds": info["seconds"],
        **{name: info["plan"][name] for name in _OF_THE_PLAN},
        "parameters": model["parameters"],
        "body_parameters": model["body_parameters"],
        "vocab_size": model["vocab_size"],
        "learning_rate": info["learning_rate"],
    }


def _curve(run: RunFolder) -> list[Row]:
    """Validation bits per byte against FLOPs, while the run trained."""
    return [
        {"flops": row["flops"], "bits_per_byte": row["bits_per_byte"]}
        for row in run.metrics("eval")
        if "bits_per_byte" in row
    ]


def _band(curves: Sequence[Sequence[Row]]) -> list[Row]:
    """Mean, least and most over the seeds, where all of them were evaluated."""
    if not curves:
        return []
    points = []
    for rows in zip(*curves, strict=False):
        values = [row["bits_per_byte"] for row in rows]
        points.append(
            {
                "flops": statistics.fmean(row["flops"] for row in rows),
                "mean": statistics.fmean(values),
                "least": min(values),
                "most": max(values),
            }
        )
    return points


def _mean_match(
    own: Mapping[int, Sequence[Row]], other: Mapping[int, Sequence[Row]]
) -> float | None:
    """Mean over common seeds of the share of compute at which ``own`` matched ``other``'s end."""
    shares = []
    for seed in own.keys() & other.keys():
        share = compute_to_match(own[seed], other[seed])
        if share is None:
            return None
        shares.append(share)
    return statistics.fmean(shares) if shares else None


def compute_to_match(own: Sequence[Row], other: Sequence[Row]) -> float | None:
    """The compute at which ``own`` first came down to the last value of ``other``, in its compute.

    Between two evaluations the curve is taken as straight. None where it never came down so far.
    """
    if not own or not other:
        return None
    goal, total = other[-1]["bits_per_byte"], other[-1]["flops"]
    before: Row | None = None
    for row in own:
        if row["bits_per_byte"] <= goal:
            flops = row["flops"]
            if before is not None:
                fall = before["bits_per_byte"] - row["bits_per_byte"]
                part = (before["bits_per_byte"] - goal) / fall
                flops = before["flops"] + part * (row["flops"] - before["flops"])
            return float(flops / total)
        before = row
    return None
