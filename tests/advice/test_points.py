"""What is shipped is what was measured, and says where it comes from."""

import json
import math
import runpy
import shutil
import statistics
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoConfig

from patchtrain.advice import points
from patchtrain.demo import SEED
from patchtrain.sizing import meta_model, model_size

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "results" / "evidence"
COLLECT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "collect_points.py"))


def test_own_points_are_what_the_results_hold() -> None:
    shipped = files("patchtrain.advice").joinpath("own.json").read_text(encoding="utf-8")
    made = COLLECT["text"](COLLECT["collect"](EVIDENCE))
    assert shipped == made, "run python benchmarks/collect_points.py"


def test_own_points_keep_every_run_and_seed() -> None:
    kept = [json.loads(line) for line in (EVIDENCE / "demo.jsonl").read_text("utf-8").splitlines()]
    shipped = json.loads(files("patchtrain.advice").joinpath("own.json").read_text("utf-8"))
    losses = sorted(run["loss"] for run in shipped["runs"])
    assert losses == sorted(row["info"]["result"]["loss"] for row in kept)
    own = points.own()
    assert len(own.gains) == len(shipped["seeds"]) >= 5
    assert own.parameters == 133_440
    # What is counted for a position of this model, to the last operation: the size fits.
    (flops,) = (row["info"]["flops"] for row in kept if row["run"] == "token-rate-0.012-seed-0")
    config = kept[0]["recipe"]["model"]["config"]
    size = model_size(meta_model(AutoConfig.for_model(**config, vocab_size=512)))
    assert flops / own.tokens == size.flops_per_position(128).total


def test_collecting_follows_the_results(tmp_path: Path) -> None:
    found = json.loads((EVIDENCE / "demo.json").read_text(encoding="utf-8"))
    (chosen,) = (item["chosen"] for item in found["contenders"] if item["name"] == "token")
    (arm,) = (arm for arm in found["arms"] if arm["name"] == chosen)
    (run,) = (run for run in arm["runs"] if run["seed"] == 1)
    run["loss"] += 0.5
    shutil.copytree(EVIDENCE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "demo.json").write_text(json.dumps(found))
    now, before = COLLECT["collect"](tmp_path)["gains"], points.own().gains
    assert now[1] == pytest.approx(before[1] + 0.5)
    assert (now[0], *now[2:]) == pytest.approx((before[0], *before[2:]))


def test_the_demo_is_what_was_measured() -> None:
    asked = yaml.safe_load((ROOT / "benchmarks" / "evidence.yaml").read_text(encoding="utf-8"))
    study, store = asked["studies"]["demo"], asked["stores"]["python-512"]
    settings = yaml.safe_load(files("patchtrain.demo").joinpath("demo.yaml").read_text("utf-8"))
    assert store["sources"] == ["stdlib"]
    assert [store["tokenizer"], store["vocab_size"]] == list(settings["tokenizer"].values())
    assert settings["recipe"]["model"] == study["recipe"]["model"]
    patches = settings["arms"][1]["plan"]
    plan = {**settings["recipe"]["plan"], **settings["lengths"]["full"], **patches}
    assert plan.pop("schedule_scope") == "run"  # the preset's own
    assert plan == study["recipe"]["plan"]
    assert study["arms"]["k2"] == {"K": patches["patch_size"], "r": patches["step_fraction"]}
    shipped = json.loads(files("patchtrain.advice").joinpath("own.json").read_text("utf-8"))
    gains = dict(zip(shipped["seeds"], shipped["gains"], strict=True))
    assert gains[SEED] == statistics.median(gains.values())  # the demo shows no lucky draw
    rates = [arm["training"]["learning_rate"] for arm in settings["arms"]]
    assert list(shipped["best_rate"].values()) == rates  # token level, then patches


def test_every_table_names_a_source() -> None:
    values = points.published()
    tables = [values[key] for key in values if key not in ("about", "sources", "findings")]
    for table in [*tables, *values["findings"].values()]:
        assert table["source"] in values["sources"]
        assert table.get("what") or table["text"]
    assert points.cite("patch") == "2407.12665"
    assert points.cite("superposition") == "2605.06546"


def test_tables_agree_where_they_hold_the_same_run() -> None:
    """The papers give some runs twice, once with fewer digits."""
    values = points.published()
    ample = values["patch_fraction"]["families"][0]["perplexity"]
    (row,) = (row for row in values["equal_data"]["rows"] if row[:2] == [370e6, 360e9])
    assert [ample[0], ample[2]] == [round(row[2], 1), round(row[3], 1)]
    for name, sweep in ((n, points.sweep(n)) for n in ("270M", "600M")):
        (pair, *_) = (p for p in points.equal_compute_pairs() if p.parameters == sweep.parameters)
        assert pair.tokens == sweep.tokens, name
        i, j = list(sweep.step_fractions).index(0.3), list(sweep.patch_sizes).index(6)
        assert sweep.gains[i, j] == pytest.approx(pair.gain, abs=0.002)
    steps = values["equal_compute"]["tokens_per_step"]
    for _, count, tokens, *_ in values["equal_compute"]["rows"]:
        assert count * steps == pytest.approx(tokens, rel=0.01)


def test_gains_are_positive_where_patches_ended_lower() -> None:
    pairs = points.equal_data_pairs()
    lost = [(pair.parameters, pair.tokens) for pair in pairs if pair.gain < 0]
    assert lost == [(370e6, 45e9), (370e6, 90e9), (1.3e9, 360e9), (2.7e9, 360e9)]
    assert pairs[0].gain == pytest.approx(math.log(12.50 / 12.84))
    assert all(pair.gain > 0 for pair in points.equal_compute_pairs())
    sweep = points.sweep("270M")
    assert sweep.gains.shape == (9, 8)
    assert np.all(sweep.gains[-1] < -1)  # no token level at all: ruined
