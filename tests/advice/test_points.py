"""What is shipped is what was measured, and says where it comes from."""

import json
import math
import runpy
import statistics
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoConfig

from patchtrain.advice import points
from patchtrain.demo import SEED
from patchtrain.plan import PlanSpec
from patchtrain.sizing import meta_model, model_size

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "results" / "evidence"
COLLECT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "collect_points.py"))


def test_own_points_are_what_the_results_hold() -> None:
    shipped = files("patchtrain.advice").joinpath("own.json").read_text(encoding="utf-8")
    made = COLLECT["text"](COLLECT["collect"](ROOT / "results" / "map.json"))
    assert shipped == made, "run python benchmarks/map.py and collect_points.py"


def losses(study: str) -> dict[str, dict[int, float]]:
    """What the runs of a study ended at, by arm and seed, from the ledger alone."""
    ended: dict[str, dict[int, float]] = {}
    for line in (EVIDENCE / f"{study}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        arm, _, seed = row["run"].rpartition("-seed-")
        ended.setdefault(arm, {})[int(seed)] = row["info"]["result"]["loss"]
    return ended


def demo_gains() -> dict[int, float]:
    found = json.loads((EVIDENCE / "demo.json").read_text("utf-8"))
    chosen = {item["name"]: item["chosen"] for item in found["contenders"]}
    ended = losses("demo")
    token, patch = ended[chosen["token"]], ended[chosen["k2"]]
    return {seed: token[seed] - patch[seed] for seed in found["seeds"]}


def test_own_points_are_what_the_runs_ended_at() -> None:
    (own,) = (item for item in points.own() if item.study == "demo")
    assert len(own.gains) >= 5
    assert own.gains == pytest.approx(list(demo_gains().values()))
    assert (own.parameters, own.patch_size, own.share) == (133_440, 2, 0.3)
    kept = [json.loads(line) for line in (EVIDENCE / "demo.jsonl").read_text("utf-8").splitlines()]
    # What is counted for a position of this model, to the last operation: the size fits.
    (flops,) = (row["info"]["flops"] for row in kept if row["run"] == "token-rate-0.012-seed-0")
    config = kept[0]["recipe"]["model"]["config"]
    size = model_size(meta_model(AutoConfig.for_model(**config, vocab_size=512)))
    assert flops / own.tokens == size.flops_per_position(128).total


def test_no_comparison_is_counted_twice() -> None:
    asked = [(o.text, o.vocab_size, o.parameters, o.tokens, o.patch_size, o.share, o.rows)
             for o in points.own()]  # fmt: skip
    assert len(set(asked)) == len(asked)


def test_the_demo_is_what_was_measured() -> None:
    asked = yaml.safe_load((ROOT / "benchmarks" / "evidence.yaml").read_text(encoding="utf-8"))
    study, store = asked["studies"]["demo"], asked["stores"]["python-512"]
    settings = yaml.safe_load(files("patchtrain.demo").joinpath("demo.yaml").read_text("utf-8"))
    assert store["sources"] == ["stdlib"]
    assert [store["tokenizer"], store["vocab_size"]] == list(settings["tokenizer"].values())
    assert settings["recipe"]["model"] == study["recipe"]["model"]
    patches = settings["arms"][1]["plan"]
    plan = {**settings["recipe"]["plan"], **settings["lengths"]["full"], **patches}
    specs = [PlanSpec.from_dict(each).filled() for each in (plan, study["recipe"]["plan"])]
    assert plan["preset"] == "patchtrain"  # which is what won in the study
    assert replace(specs[1], preset="patchtrain") == specs[0]
    assert study["arms"]["k2"] == {"K": patches["patch_size"], "r": patches["step_fraction"]}
    gains = demo_gains()
    assert gains[SEED] == statistics.median(gains.values())  # the demo shows no lucky draw
    rates = [arm["training"]["learning_rate"] for arm in settings["arms"]]
    contenders = json.loads((EVIDENCE / "demo.json").read_text("utf-8"))["contenders"]
    best = {item["name"]: item["learning_rate"] for item in contenders}
    assert [best["token"], best["k2"]] == rates


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
