"""Rates by stage are what the metrics say, and say so where they do not."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from patchtrain.devices import device
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.throughput import (
    Peak,
    in_order,
    known_peak,
    measured_peak,
    precision,
    throughput,
)
from patchtrain.runs import RunFolder

PLAN = {
    "stages": [{"name": "patches of 4", "patch_size": 4}, {"name": "tokens", "patch_size": 1}],
    "processes": 2,
}


def row(event: str, step: int, stage: int, seconds: float, **more: Any) -> dict[str, Any]:
    """Ten positions a step, a thousand FLOPs a position; four tokens a position at first."""
    tokens = 40 * min(step, 5) + 10 * max(step - 5, 0)
    counters = {"tokens": tokens, "positions": 10 * step, "flops": 10_000 * step}
    return {"event": event, "step": step, "stage": stage, **counters, "seconds": seconds} | more


ROWS = [
    row("train", 1, 0, 2.0, data_seconds=0.5),
    row("train", 5, 0, 10.0, data_seconds=1.0),
    row("eval", 5, 0, 10.0, data_seconds=1.0),
    row("switch", 5, 1, 10.0, data_seconds=1.0),
    row("train", 15, 1, 30.0, data_seconds=6.0),
]


def run_of(folder: Path, rows: list[dict[str, Any]], **info: Any) -> RunFolder:
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    run.write_info({"plan": PLAN, **info})
    run.metrics_file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return run


def test_each_stage_and_the_whole(tmp_path: Path) -> None:
    found = throughput(run_of(tmp_path, ROWS), Peak(50_000.0, "told"))
    first, second = found["stages"]
    assert (first["stage"], first["name"], first["patch_size"]) == (1, "patches of 4", 4)
    assert (first["steps"], first["tokens_per_s"], first["positions_per_s"]) == (5, 20.0, 5.0)
    assert (first["flop_per_s"], first["peak_share"], first["data_share"]) == (5_000.0, 0.1, 0.1)
    assert (second["steps"], second["tokens_per_s"], second["positions_per_s"]) == (10, 5.0, 5.0)
    assert (second["peak_share"], second["data_share"]) == (0.1, 0.25)
    assert found["total"]["tokens_per_s"] == 10.0
    assert found["total"]["data_share"] == 0.2


def test_a_run_of_an_earlier_version_does_not_tell_its_waiting(tmp_path: Path) -> None:
    old = [{k: v for k, v in r.items() if k != "data_seconds"} for r in ROWS]
    found = throughput(run_of(tmp_path, old), None)
    assert [stage["data_share"] for stage in found["stages"]] == [None, None]
    assert found["total"]["data_share"] is None
    assert found["total"]["peak_share"] is None
    assert found["total"]["tokens_per_s"] == 10.0
    # Resumed in the first stage with this version: only of the second everything is known.
    found = throughput(run_of(tmp_path, [*old[:1], *ROWS[1:]]), None)
    assert [stage["data_share"] for stage in found["stages"]] == [None, 0.25]
    assert found["total"]["data_share"] is None


def test_a_stage_that_has_not_begun_has_no_speed(tmp_path: Path) -> None:
    assert len(throughput(run_of(tmp_path, ROWS[:2]), None)["stages"]) == 1
    with pytest.raises(UsageError, match="no metrics of training"):
        throughput(run_of(tmp_path, []), None)


def test_steps_that_a_resume_repeats_count_once() -> None:
    rows = [row("train", step, 0, step) for step in (1, 5, 9)]
    again = [row("train", step, 0, 100 + step) for step in (5, 9)]
    assert in_order([*rows, *again]) == [rows[0], *again]
    assert in_order([{"step": "3"}, {"step": float("nan")}, {"event": "train"}]) == []


@pytest.mark.parametrize(
    ("rows", "info"),
    [
        ([{**ROWS[0], "seconds": "2"}, {**ROWS[1], "tokens": [1]}], {}),
        (ROWS, {"plan": {"stages": [{"name": "x"}]}}),
        (ROWS, {"plan": {"stages": 7}}),
        ([{**ROWS[0], "stage": None}, *ROWS], {}),
    ],
)
def test_other_values_are_one_clear_line(
    tmp_path: Path, rows: list[dict[str, Any]], info: dict[str, Any]
) -> None:
    with pytest.raises(PatchtrainError, match="a file of an unexpected form"):
        throughput(run_of(tmp_path, rows, **info), None)


def test_the_peak_is_that_of_the_devices_and_the_precision() -> None:
    h100 = {"machine": {"device": "NVIDIA H100 80GB HBM3"}, "plan": PLAN}
    half = {"identity": {"optimizer": {"bf16": True}}}
    weights = {"identity": {"model": {"dtype": "bfloat16"}}}
    assert [precision(h100 | more) for more in ({}, half, weights)] == ["fp32", "bf16", "bf16"]
    for more, kind in (({}, "fp32"), (half, "bf16")):
        found, stated = known_peak(h100 | more), device("h100").peak(kind)
        assert found is not None
        assert stated is not None
        assert found.flops == 2 * stated
        assert kind in found.source
    assert known_peak({"machine": {"device": "cpu"}}) is None
    assert known_peak({"machine": {"device": "Tesla T4"}} | half) is None  # it has no bf16


def test_a_cpu_is_measured_where_it_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import torch

    monkeypatch.setattr("patchtrain.evaluation.throughput._MEASURED_SECONDS", 0.05)
    monkeypatch.setattr("patchtrain.evaluation.throughput.MATRIX_SIDE", {"cpu": 256, "cuda": 256})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = {"device": "cpu", "cores": os.cpu_count(), "threads": 1}
    here = {"machine": machine, "process": {"host": platform.node()}}
    threads = torch.get_num_threads()
    found = measured_peak(here)
    assert found is not None
    assert 1e8 < found.flops < 1e14
    assert "256 x 256 matrices, fp32, this CPU with 1 thread" in found.source
    assert torch.get_num_threads() == threads
    for other in ({"process": {"host": "elsewhere"}}, {"machine": machine | {"cores": 4096}}, {}):
        assert measured_peak((here if other else {}) | other) is None
