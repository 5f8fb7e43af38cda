"""``patchtrain plan`` as a user calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from patchtrain.cli.main import main
from patchtrain.cost import Rates, bill
from patchtrain.data.prepare import prepare
from patchtrain.plan import PlanSpec
from patchtrain.planning import planned
from patchtrain.recipe import Recipe
from patchtrain.report.plan_page import ratio
from tests.cli.corpus import write_corpus

RECIPES = Path(__file__).parents[2] / "recipes"
BIG = str(RECIPES / "papers" / "patch-370m.yaml")
TINY = [str(RECIPES / "small.yaml"), "store=stores/none", "model.config.vocab_size=512"]


def test_the_bill_of_a_paper(capsys: pytest.CaptureFixture[str]) -> None:
    command = [BIG, "--device", "h100", "--devices", "8", "--price", "2", "--kwh-price", "0.2",
               "--no-memory"]  # fmt: skip
    assert main(["plan", *command]) == 0
    out = capsys.readouterr().out
    assert "1 patches of 4" in out
    assert "0.500 of the compute of token-level training" in out
    assert re.search(r"time .* on 8 x NVIDIA H100 SXM .* at 40% of the bf16 peak \(assumed\)", out)
    assert re.search(r"device-hours .*currency", out)
    assert "kWh" in out
    assert "GB in a store" in out


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "--device", "a100", "--devices", "8", "--no-memory", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio_at_equal_data"] == pytest.approx(0.5, abs=1e-3)
    assert found["device"]["name"] == "a100"
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    assert found["device_hours"] == pytest.approx(8 * found["seconds"] / 3600)
    assert found["money"] is None
    parts = {k: v for k, v in found["flops"].items() if k != "total"}
    assert found["flops"]["total"] == pytest.approx(sum(parts.values()))


def test_overrides_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "plan.patch_fraction=0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio_at_equal_data"] == pytest.approx(0.625, abs=1e-3)
    assert found["seconds"] is None


def test_a_few_steps_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "--measure", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["utilisation"] is None
    assert all(stage["seconds"] > 0 for stage in found["stages"])
    assert main(["plan", *TINY, "--measure"]) == 0
    assert "from a few timed steps" in capsys.readouterr().out


def test_what_is_too_large_to_measure_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "--measure"]) == 2
    assert "minutes on this CPU" in capsys.readouterr().err


def test_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    assert main(["plan", BIG, "--device", "h100", "--no-memory", "--page", str(page)]) == 0
    text = page.read_text()
    assert "Compute at equal data" in text
    assert "this plan" in text
    assert "default-src 'none'" in text
    assert main(["plan", BIG, "--page", str(tmp_path / "no" / "plan.html")]) == 2


@pytest.mark.parametrize("rows", ["positions", "tokens"])
def test_the_plan_stands_on_the_curve_of_its_patch_size(rows: str) -> None:
    run = planned(TINY[0], [*TINY[1:], f"plan.rows={rows}"])
    found = bill(run.size, run.plan, Rates())
    patched = run.plan.stages[0].tokens / run.plan.total_tokens
    curve = ratio(run.size, run.plan.spec, 4, patched)
    assert curve == pytest.approx(found.ratio_at_equal_data, rel=1e-9)


def test_the_rows_of_patches_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY]) == 0
    assert "1 patches of 4 in rows of 32 positions" in capsys.readouterr().out


def test_a_loss_that_is_foreseen_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "plan.patch_fraction=0.95"]) == 0
    assert "warning" in capsys.readouterr().out


def test_advice_says_why_and_what_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    for scarce, preset in (("data", "paper"), ("compute", "superposition")):
        assert main(["plan", BIG, "--advise", scarce]) == 0
        out = capsys.readouterr().out
        assert re.search(rf"advice .* preset {preset} \({scarce} being scarce\)", out)
        assert "expected gain" in out
        assert "because" in out
        assert main(["plan", BIG, "--advise", scarce, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        overrides = found["advice"]["overrides"].split()
        assert main(["plan", BIG, *overrides, "--json"]) == 0  # what it says can be taken
        taken = json.loads(capsys.readouterr().out)
        assert taken["plan"]["preset"] == preset
        assert taken["tokens"] == pytest.approx(found["advice"]["tokens_read"], rel=0.01)


def test_where_patches_lost_token_level_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "plan.tokens=45B", "--advise", "data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.startswith("  advice "))
    assert "token level only, preset paper (data being scarce)" in lines[first]
    assert "K = 4 on 0.25 of the tokens, preset paper; untested here" in lines[first + 1]
    take, other = (line.split(maxsplit=3) for line in lines[-2:])
    assert (take[:3], other[:3]) == (["to", "take", "it"], ["or", "the", "other"])
    for words, sizes in ((take, [1]), (other, [4, 1])):
        assert main(["plan", BIG, "plan.tokens=45B", *words[3].split(), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [stage["patch_size"] for stage in found["plan"]["stages"]] == sizes


def test_the_advice_is_taken_whatever_a_recipe_holds(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["model.config.num_hidden_layers=24", "model.config.hidden_size=1024",
             "plan.context_length=2048", "plan.tokens_per_step=524288"]  # fmt: skip
    paper = ["plan.preset=paper", "plan.rows=null", "plan.step_fraction=null"]
    for more in (paper, [*paper, *large]):
        recipe = [*TINY, "plan.patch_fraction=0.66", "plan.hold=tokens", *more]
        assert main(["plan", *recipe, "--advise", "compute", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        overrides = found["advice"]["overrides"].split()
        assert main(["plan", *recipe, *overrides, "--json"]) == 0
        taken = json.loads(capsys.readouterr().out)
        assert taken["plan"]["total_positions"] == pytest.approx(
            found["advice"]["tokens"], rel=0.01
        )


@pytest.mark.parametrize("scarce", ["data", "compute"])
def test_what_is_advised_for_epochs_can_be_trained(
    scarce: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = prepare(
        [write_corpus(tmp_path / "text.txt", sentences=4000)], tmp_path / "store",
        train_tokenizer="byte",
    )  # fmt: skip
    words = [TINY[0], f"store={store.path}", "plan.context_length=16", "plan.tokens_per_step=256",
             "plan.steps=null", "plan.epochs=2", "plan.max_epochs=1"]  # fmt: skip
    assert main(["plan", *words, "--advise", scarce, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    asked = found["advice"]["overrides"].split()
    plan = PlanSpec.from_dict(Recipe.load(TINY[0], [*words[1:], *asked]).plan)
    if scarce == "compute":  # so often and no more: more text can be had
        assert (plan.epochs, plan.max_epochs) == (None, 2)
        return
    taken = plan.resolve(store_tokens=len(store.train.tokens))
    assert taken.total_tokens == pytest.approx(found["advice"]["tokens_read"], rel=0.01)


def test_memory_of_each_stage_and_what_would_make_it_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = [*TINY, "plan.tokens_per_step=4096", "--device", "l4"]
    assert main(["plan", *small]) == 0
    out = capsys.readouterr().out
    assert re.search(r"fits +NVIDIA L4", out)
    wide = ["model.config.hidden_size=16384", "model.config.intermediate_size=65536"]
    assert main(["plan", *small, *wide, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["peak"] > 24e9 for stage in found["memory"]] == [True, True]
    assert found["would_fit"]
    assert main(["plan", *small, "--no-memory", "--json"]) == 0
    assert "memory" not in json.loads(capsys.readouterr().out)


def test_too_little_text_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "plan.tokens=45B"]) == 0
    assert "tokens for each parameter are few" in capsys.readouterr().out


def test_the_devices_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, "--device", "list"]) == 0
    out = capsys.readouterr().out
    assert "h100" in out
    assert "data sheet" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "h1000"], "no device 'h1000'"),
        (["--utilisation", "1.5"], "share of the device's peak"),
        (["--utilisation", "nan"], "share of the device's peak"),
        (["--price", "-1"], "--price must be"),
        (["--devices", "0"], "at least 1 device"),
        (["--measure", "--device", "h100"], "leave --device out"),
        (["--measure", "--utilisation", "0.3"], "no --utilisation to assume"),
    ],
)
def test_wrong_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", BIG, *options]) == 2
    assert message in capsys.readouterr().err
