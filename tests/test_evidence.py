"""Evidence is kept: runs are lines of a file, trained once wherever that file is."""

import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from patchtrain.analysis.studies import runner
from patchtrain.report.formats import NONE
from tests.analysis.studies.tiny import Here
from tests.cli.corpus import write_corpus
from tests.test_benchmarks import BENCHMARKS, Done, result, run

KEPT = BENCHMARKS.parent / "results" / "evidence"

RECIPE: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        }
    },
    "plan": {
        "preset": "superposition", "context_length": 16, "tokens_per_step": 64, "steps": 8,
        "max_epochs": 9,
    },
    # Most of such a run is evaluation.
    "training": {"per_device_train_batch_size": 4, "save_strategy": "no", "eval_steps": 0.5},
}  # fmt: skip


class Place:
    """A folder with a corpus, studies and what was kept of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trained = 0
        (path / "texts").mkdir()
        write_corpus(path / "texts" / "text.txt", sentences=1000)
        self.study: dict[str, Any] = {
            "store": "tiny", "recipe": RECIPE, "rates": [0.001, 0.01], "seeds": [0],
            "arms": {"k2": {"K": 2, "r": 0.5}},
        }  # fmt: skip

    def __call__(self, *options: str, script: str = "evidence") -> Done:
        store = {"sources": ["text.txt"], "tokenizer": "bpe", "vocab_size": 280}
        asked = {
            "stores": {"tiny": store}, "studies": {"small": self.study},
            "again": {"study": "small", "arm": "k2"},
        }  # fmt: skip
        (self.path / "asked.yaml").write_text(yaml.safe_dump(asked))
        return run(
            script, "--data", str(self.path / "texts"), "--work", str(self.path / "work"),
            "--kept", str(self.path / "kept"), "--asked", str(self.path / "asked.yaml"),
            "--workers", "1", *options,
        )  # fmt: skip

    def rows(self) -> dict[str, Any]:
        lines = (self.path / "kept" / "small.jsonl").read_text().splitlines()
        return {row["run"]: row for row in map(json.loads, lines)}

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "kept" / "small.json").read_text())
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    found = Place(tmp_path)

    def popen(command: list[str], log: Any, place: Any) -> Any:
        found.trained += 1
        return Here(command, log, place)

    monkeypatch.setattr(runner, "_popen", popen)
    return found


def test_what_is_kept_is_not_trained_again(place: Place) -> None:
    assert place("small").returncode == 0
    assert place.trained == 4  # token level and patches, each at two rates
    first, rows = place.summary(), place.rows()
    assert first["complete"]
    assert first["benchmark"] == "evidence"
    assert {row["info"]["status"] for row in rows.values()} == {"finished"}
    assert all(row["curve"] and row["recipe"]["seed"] == 0 for row in rows.values())
    # On another machine, where only what is kept is there; then one seed more.
    shutil.rmtree(place.path / "work" / "small")
    assert place("small").returncode == 0
    assert place.trained == 4
    unchanged = ("contenders", "arms", "rates", "complete")
    assert {key: place.summary()[key] for key in unchanged} == {
        key: first[key] for key in unchanged
    }
    place.study["seeds"] = [0, 1]
    shutil.rmtree(place.path / "work" / "small")
    assert place("small").returncode == 0
    assert place.trained == 6  # each at its best rate
    assert place.rows().items() > rows.items()
    assert "    6 runs  small" in place("--list").stdout
    (place.path / "evidence").symlink_to(place.path / "kept")
    assert run("tables", "--results", str(place.path)).returncode == 0
    table = (place.path / "kept" / "small.md").read_text()
    best = first["contenders"][1]["learning_rate"]
    assert "| k2 | patches of 2 for 50% of the positions, then tokens" in table
    assert f"| {best:g} |" in table
    assert "results/evidence/small.json" in table
    of_all = (place.path / "evidence.md").read_text()
    difference = place.summary()["contenders"][1]["difference"]
    lower = sum(value < 0 for value in difference["values"])
    assert f"| {difference['mean']:+z.4f} (" in of_all
    assert f"| {lower} of 2 seeds | {NONE} | {NONE} |" in of_all


def test_what_another_study_trained_by_the_same_recipe_is_taken_over(place: Place) -> None:
    place.study |= {"rates": [0.01], "budgets": [0.5]}
    assert place("small").returncode == 0
    before, trained = place.rows(), place.trained
    assert set(before) == {
        "token-rate-0.01-seed-0", "k2-rate-0.01-seed-0", "token-rate-0.01-budget-0.5-seed-0",
    }  # fmt: skip
    shutil.rmtree(place.path / "work" / "small")
    kept = place.path / "kept" / "small.jsonl"
    lines = kept.read_text().replace('"run": "', '"run": "theirs-')
    kept.rename(kept.with_name("other.jsonl")).write_text(lines)
    other_rate = lines.replace('"learning_rate": 0.01', '"learning_rate": 0.02')
    (place.path / "kept" / "third.jsonl").write_text(other_rate)
    assert place("small").returncode == 0
    assert place.trained == trained
    assert place.rows() == before
    assert place.summary()["complete"]
    kept.unlink()
    kept.with_name("other.jsonl").unlink()
    shutil.rmtree(place.path / "work" / "small")
    assert place("small").returncode == 0
    assert place.trained == 2 * trained  # at another rate it is another run


def test_copying_is_measured_on_models_that_are_kept(place: Place) -> None:
    place.study["rates"] = [0.01]
    (place.path / "none" / "runs").mkdir(parents=True)
    missing = run("copying", str(place.path / "none"))
    assert missing.returncode == 1
    assert "no run with a model; train it with --keep models" in missing.stderr
    assert place("small", "--keep", "models").returncode == 0
    out = place.path / "results" / "copying.json"
    found = result("copying", out, str(place.path / "work" / "small"), "--windows", "20")
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert [row["run"] for row in found["rows"]] == list(place.rows())
    for row in found["rows"]:
        parts = [row["losses"][name] * share for name, share in found["shares"].items()]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert run("tables", "--results", str(out.parent)).returncode == 0
    assert "| `k2-rate-0.01-seed-0` | " in out.with_suffix(".md").read_text()


def test_two_tokens_that_stood_before_decide_over_one() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        script = runpy.run_path(str(BENCHMARKS / "copying.py"))
    window = np.array([5, 6, 7, 5, 6, 7, 8, 7, 5, 9])
    names = [script["PARTS"][part] for part in script["parts_of"](window)]
    expected = ["new", "new", "new", "one", "two", "misleads", "new", "misleads", "misleads"]
    assert names == expected


def test_counting_trains_nothing(place: Place) -> None:
    place.study["rates"] = [0.01]
    assert place("small").returncode == 0
    place.study["arms"]["k4"] = {"K": 4, "r": 0.5}
    assert place("small", "--collect").returncode == 0
    assert place.trained == 2
    assert not place.summary()["complete"]


def test_what_was_compiled_says_so_and_ends_alike(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.study["rates"] = [0.01]
    assert place("small").returncode == 0
    plain = place.rows()
    (place.path / "kept" / "small.jsonl").unlink()
    shutil.rmtree(place.path / "work" / "small")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")  # all of it but the C++ compiler
    assert place("small", "--compile").returncode == 0
    for name, row in place.rows().items():
        assert row["info"]["compiled"] is True
        assert plain[name]["info"]["compiled"] is False
        assert row["recipe"] == plain[name]["recipe"]
        assert row["curve"][-1]["loss"] == pytest.approx(plain[name]["curve"][-1]["loss"], rel=1e-5)


def test_what_goes_between_levels_is_not_compiled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    place.study |= {"rates": [0.01], "arms": {"mixed": {"K": 2, "r": 0.5, "token_share": 0.5}}}
    done = place("small", "--compile")
    assert done.returncode == 1
    assert "mixed-rate-0.01-seed-0 failed: token_share cannot be used" in done.stderr
    assert all(name.startswith("token") for name in place.rows())


def test_a_study_over_axes_is_a_sweep(place: Place) -> None:
    del place.study["arms"]
    place.study |= {"rates": [0.01], "over": ["steps=8,16", "K=2,4", "r=0.5"]}
    assert place("small").returncode == 0
    assert place.trained == 6  # each length has a token level of its own
    found = place.summary()
    assert found["complete"]
    assert found["axes"]["plan.steps"] == [8, 16]
    steps = {arm["name"]: arm["runs"][0]["total_steps"] for arm in found["arms"]}
    assert steps["K4-r0.5-steps16-rate-0.01"] == 16
    for item in found["contenders"]:
        if item["reference"]:
            assert item["difference"]["seeds"] == [0]
    shutil.rmtree(place.path / "work" / "small")
    place.study["over"] = ["steps=8,16", "K=2,3,4", "r=0.5"]
    assert place("small").returncode == 0
    assert place.trained == 8  # the two new points


def test_long_runs_of_another_study_are_taken_over_once_their_rate_is_known(place: Place) -> None:
    place.study |= {"rates": [0.01, 0.02], "budgets": [0.5]}
    assert place("small").returncode == 0
    before, trained = place.rows(), place.trained
    assert trained == 5
    shutil.rmtree(place.path / "work" / "small")
    kept = place.path / "kept" / "small.jsonl"
    (longer,) = (line for line in kept.read_text().splitlines() if "-budget-" in line)
    kept.with_name("other.jsonl").write_text(longer.replace('"run": "', '"run": "theirs-') + "\n")
    kept.unlink()
    assert place("small").returncode == 0
    assert place.trained == trained + 4
    assert set(place.rows()) == set(before)


def test_the_map_has_every_plain_contender(place: Place) -> None:
    empty = run("map", "--kept", str(place.path / "kept"))
    assert empty.returncode == 1
    assert "no comparison in" in empty.stderr
    del place.study["arms"]
    place.study["over"] = [
        "steps=8,16",
        "K=2",
        "r=0.5",
        "phase=fixed,random",
        "rows=positions,tokens",
    ]
    assert place("small").returncode == 0
    out, figure = place.path / "results" / "map.json", place.path / "map.svg"
    found = result("map", out, "--kept", str(place.path / "kept"), "--figure", str(figure))
    ended = place.summary()
    arms = {arm["name"]: arm["runs"][0]["loss"] for arm in ended["arms"]}
    chosen = {item["name"]: item["chosen"] for item in ended["contenders"]}
    rows = [(point["steps"], point["rows"]) for point in found["rows"]]
    # The random phases are another question.
    assert sorted(rows) == [(n, rows) for n in (8, 16) for rows in ("positions", "tokens")]
    for point in found["rows"]:
        name = point["contender"]
        gain = arms[chosen[f"token-steps{point['steps']}"]] - arms[chosen[name]]
        assert point["gain"] == pytest.approx(gain)
        assert f"K{point['patch_size']}-r{point['share']}" in name
        assert point["rows"] in name
    assert {point["held_equal"] for point in found["published"]} == {"compute", "data", "nothing"}
    assert "tokens per parameter" in figure.read_text()
    before = figure.read_bytes()
    result("map", out, "--kept", str(place.path / "kept"), "--figure", str(figure))
    assert figure.read_bytes() == before
    assert run("tables", "--results", str(out.parent)).returncode == 0
    table = out.with_suffix(".md").read_text()
    (row,) = (
        line
        for line in table.splitlines()
        if line.startswith("| tiny | 280 |") and "| 16 |" in line
    )
    gains = {
        point["rows"]: f"{point['gain']:+z.3f}" for point in found["rows"] if point["steps"] == 16
    }
    assert row.endswith(f"| {gains['positions']} / {gains['tokens']} |")


@pytest.mark.parametrize(
    ("entries", "settings"),
    [
        ({"patch_size": 2, "step_fraction": 0.3}, (2, 0.3, "positions")),
        ({"patch_size": 2, "step_fraction": 0.3, "rows": "tokens"}, (2, 0.3, "tokens")),
        ({"stages": [[2, 0.3], [1, 0.7]], "share_of": "steps"}, (2, 0.3, "positions")),
        ({"stages": [{"patch_size": 4, "share": 0.3, "context_length": 16}, [1, 0.7]],
          "share_of": "steps", "step_fraction": None}, (4, 0.3, "tokens")),
        ({"stages": [{"patch_size": 4, "share": 0.3, "context_length": 32}, [1, 0.7]],
          "share_of": "steps"}, None),
        ({"stages": [{"patch_size": 2, "share": 0.3, "ablation": "input-only"}, [1, 0.7]],
          "share_of": "steps"}, None),
        ({"stages": [[4, 0.1], [2, 0.2], [1, 0.7]], "share_of": "steps"}, None),
        ({"stages": [[2, 0.3], [1, 0.7]]}, None),  # of the tokens
        ({"patch_size": 2, "step_fraction": 0.3, "phase": "random"}, None),
        ({"patch_size": 2, "step_fraction": 0.3, "phase": "fixed"}, (2, 0.3, "positions")),
        ({"patch_size": 1, "patch_fraction": 0}, None),
        ({"patch_size": 2, "step_fraction": 0.3, "training.learning_rate": 0.1},
         (2, 0.3, "positions")),
        # Token level has the one, and not the other.
        ({"patch_size": 2, "step_fraction": 0.3, "model.config.hidden_size": 32},
         (2, 0.3, "positions")),
        ({"patch_size": 2, "step_fraction": 0.3, "training.muon_rate": 1}, None),
    ],
)  # fmt: skip
def test_what_the_map_takes_for_a_plain_contender(
    entries: dict[str, Any], settings: tuple[Any, ...] | None
) -> None:
    changed = {key if "." in key else f"plan.{key}": value for key, value in entries.items()}
    token = {"model.config.hidden_size": 32, "training.learning_rate": 0.2}
    found = map_script()["plain"](changed, token, {"context_length": 64})
    assert (tuple(found.values()) if found else None) == settings


def test_the_map_takes_the_share_of_the_tokens_at_equal_data() -> None:
    entries = {"plan.patch_size": 4, "plan.rows": "tokens", "plan.steps": 500}
    plan = {"context_length": 64, "patch_fraction": 0.5, "step_fraction": None}
    found = map_script()["plain"](entries, {}, plan, "data")
    assert found == {"patch_size": 4, "share": 0.5, "rows": "tokens"}
    assert map_script()["plain"](entries, {}, plan) is None  # no share of the steps


def test_of_points_that_are_alike_the_most_tried_is_taken(tmp_path: Path) -> None:
    script, demo = map_script(), json.loads((KEPT / "demo.json").read_text(encoding="utf-8"))
    (once,) = script["of_study"](KEPT / "demo.json", "compute")
    for item in demo["contenders"]:
        item["tried"] = item["tried"][:1]
    (tmp_path / "a-later-one.json").write_text(json.dumps(demo))
    assert script["own_points"](tmp_path, "compute")[0]["rates"] == 1
    (tmp_path / "demo.json").write_bytes((KEPT / "demo.json").read_bytes())
    assert script["own_points"](tmp_path, "compute") == [once]
    assert once["rates"] > 1


def map_script() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return runpy.run_path(str(BENCHMARKS / "map.py"))


def test_the_target_is_judged_by_the_second_best_text() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        targets = runpy.run_path(str(BENCHMARKS / "tables_of_quality.py"))["_targets"]

    def study(text: str, mean: float | None, count: int = 5, **more: Any) -> dict[str, Any]:
        ratio = {"compute": {"mean": mean, "bound": more.get("bound")}}
        item = {"difference": {"count": count, "interval": more.get("interval", [-0.2, -0.1])},
                "equal_loss": ratio}  # fmt: skip
        return {"about": {"corpus": text}, "contenders": [item]}

    def judged(*studies: dict[str, Any]) -> list[bool]:
        return ["not reached" not in said for said in targets(dict(enumerate(studies)))]

    one = study("python", 0.3)
    assert judged(one, study("python", 0.2)) == []  # of one text alone nothing is said
    assert judged(one, study("cpp", 0.45)) == [True, False]
    assert judged(one, study("cpp", None, bound={"below": 0.4})) == [True, True]
    assert judged(one, study("cpp", None, bound={"above": 0.4})) == []
    assert judged(one, study("cpp", 0.6), study("novels", 0.55)) == [False, False]
    assert judged(one, study("cpp", 0.3, count=4)) == []
    assert judged(one, study("cpp", 0.3, interval=[-0.2, 0.01])) == []


def test_the_plane_of_the_map_is_found_again() -> None:
    """Points made from a plane, of which each is predicted by the others."""
    script = map_script()
    rng = np.random.default_rng(0)
    points = [
        {"corpus": ["python", "cpp"][number % 2], "parameters": rng.integers(1e4, 1e6), "rates": 2,
         "tokens": rng.integers(1e6, 1e8), "vocab_size": rng.choice([256, 512, 1024]),
         "patch_size": rng.choice([2, 4]), "share": rng.choice([0.1, 0.3]),
         "rows": rng.choice(["positions", "tokens"])}
        for number in range(24)
    ]  # fmt: skip
    terms = np.array([-0.5, 0.2, -0.05, -0.3, 0.1, 0.15])
    for point, row in zip(points, script["columns"](points), strict=True):
        point["gain"] = float(row @ terms) * -np.log(1 - point["share"])
    found = script["plane"](points)
    assert list(found["terms"].values()) == pytest.approx(terms, abs=1e-6)
    assert found["left_out"]["rms"] < 1e-6
    assert found["left_out"]["points"] == found["left_out"]["same_sign"] == 24
    assert found["always_loses"] == sum(point["gain"] <= 0 for point in points)
    # Points on prose are none of its.
    prose = [{**points[0], "corpus": "novels", "gain": -9.0}]
    assert script["plane"]([*points, *prose]) == found
    # A point that alone has another vocabulary cannot be predicted by the others.
    same = [{**point, "vocab_size": 256} for point in points]
    alone = script["plane"]([*same, {**points[0], "vocab_size": 512}])
    assert alone["left_out"]["points"] == 24
    for few in (0, 4, 9):
        assert script["plane"](points[:few])["terms"] is None
    same_size = [{**point, "patch_size": 2} for point in points]
    assert script["plane"](same_size)["terms"] is None


def test_the_rule_that_the_plane_is_set_against_is_the_best_of_its_kind() -> None:
    ends = [(1e6, -1.0), (2e6, 0.5), (4e6, -0.1), (8e6, 0.2), (16e6, 0.3)]
    points = [{"tokens": tokens, "gain": gain} for tokens, gain in ends]
    found = map_script()["threshold"](points)
    assert found["same_sign"] == 4  # all but the second
    assert 4e6 < found["tokens"] < 8e6 or 1e6 < found["tokens"] < 2e6


def test_the_map_says_between_which_lengths_patches_begin_to_win() -> None:
    alike = {"corpus": "python", "vocab_size": 512, "parameters": 1000, "share": 0.3}

    def between(*ends: tuple[int, float], **more: Any) -> list[tuple[Any, Any]]:
        points = [
            {**alike, "patch_size": 2, "rows": "tokens", "steps": tokens // 2048, **more,
             "tokens": tokens, "gain": gain}
            for tokens, gain in ends
        ]  # fmt: skip
        return [(item["lost"], item["won"]) for item in map_script()["begins"](points)]

    assert between((1, -0.1), (2, -0.1), (4, 0.1), (8, 0.1)) == [(2, 4)]
    assert between((1, -0.1), (2, 0.1), (4, -0.1), (8, 0.1)) == [(4, 8)]
    assert between((1, -0.1), (2, 0.1), (4, 0.0)) == [(4, None)]
    assert between((1, 0.1), (2, 0.1)) == [(None, 1)]
    assert between((1, 0.1)) == []  # one length says nothing of where


@pytest.mark.parametrize("ledger", sorted(KEPT.glob("*.jsonl")), ids=lambda file: file.stem)
def test_each_arm_that_was_trained_is_in_the_results(ledger: Path) -> None:
    """A study counted with fewer arms than it has would hide some, those that lost maybe."""
    found = json.loads(ledger.with_suffix(".json").read_text(encoding="utf-8"))
    lines = ledger.read_text(encoding="utf-8").splitlines()
    trained = {re.split("-rate-|-seed-", json.loads(line)["run"])[0] for line in lines}
    assert trained <= {item["name"] for item in found["contenders"]}


def test_a_changed_recipe_needs_a_new_name(place: Place) -> None:
    place.study["rates"] = [0.01]
    assert place("small").returncode == 0
    before = place.rows()
    shutil.rmtree(place.path / "work" / "small")
    place.study["recipe"] = {**RECIPE, "plan": {**RECIPE["plan"], "steps": 12}}
    trained = place.trained
    for options in (("--collect",), ()):
        done = place("small", *options)
        assert done.returncode == 2
        assert "is of another recipe; name the study anew" in done.stderr
    assert place.trained == trained
    assert place.rows() == before


def test_a_study_that_is_not_asked_for_is_named(place: Place) -> None:
    done = place("large")
    assert done.returncode == 2
    assert "no study large" in done.stderr


def test_the_main_comparison_is_trained_again_with_new_seeds(place: Place) -> None:
    assert place("small").returncode == 0
    whole = place.summary()
    rates = {item["name"]: item["learning_rate"] for item in whole["contenders"]}
    difference = whole["contenders"][1]["difference"]["mean"]
    again = ("--seeds", "100", "101", "--work", str(place.path / "again"))
    done = place(*again, script="evidence_again")
    results = json.loads((place.path / "again" / "small" / "results.json").read_text())
    for item in results["contenders"]:
        assert item["learning_rate"] == rates[item["name"]]
        assert item["seeds"] == [100, 101]
    now = results["contenders"][1]["difference"]["mean"]
    agree = (now < 0) == (difference < 0)
    assert done.returncode == (0 if agree else 1)
    assert f"{now:+.4f} (2 seeds) now, {difference:+.4f} (1 seed) in small.json" in done.stdout
    out = place.path / "results" / "again.json"
    assert place(*again, "--out", str(out), script="evidence_again").returncode == done.returncode
    assert json.loads(out.read_text())["again"]["mean"] == now
    assert run("tables", "--results", str(out.parent)).returncode == 0
    table = out.with_suffix(".md").read_text()
    assert f"| again | 2 | {now:+.4f} (" in table
    seconds = [item["seconds"]["mean"] for item in results["contenders"]]
    assert f"ratio {seconds[1] / seconds[0]:.3f}" in table
    # The other sign is an error, whatever this one was.
    for item in whole["contenders"]:
        if item["difference"]:
            item["difference"]["mean"] *= -1 if agree else 1
    (place.path / "kept" / "small.json").write_text(json.dumps(whole))
    done = place(*again, script="evidence_again")
    assert done.returncode == 1
    assert "the sign of k2 less token is not that of small.json" in done.stderr
    quick = place(*again, "--quick", script="evidence_again")
    assert quick.returncode == 0
    assert "so short a run says nothing of the sign" in quick.stdout
    for item in whole["contenders"]:
        item["bits_per_byte"] = item["bits_per_byte"] if item["name"] == "token" else None
    (place.path / "kept" / "small.json").write_text(json.dumps(whole))
    done = place(*again, script="evidence_again")
    assert done.returncode == 1
    assert "no finished run of k2 is kept yet" in done.stderr
