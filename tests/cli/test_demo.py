"""The demo, quick: run once as a user would, then reused, refused and started over."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from patchtrain.cli.main import main
from patchtrain.data.store import TokenStore
from patchtrain.demo import SEED, demo_recipes, is_done
from patchtrain.runs import RunFolder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "patchtrain", "demo", "--quick"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "patchtrain-demo", done.stdout, done.stderr


def test_it_trains_two_arms_at_equal_compute(demo: tuple[Path, str, str]) -> None:
    out, printed, progress = demo
    token, patch = (
        RunFolder.open(out / name) for name in ("quick-token-level", "quick-patch-level")
    )
    # Positions are equal; pooling and the loss of K targets are a few operations more.
    assert token.info()["flops"] == pytest.approx(patch.info()["flops"], rel=1e-3)
    assert token.info()["seed"] == patch.info()["seed"]
    assert token.info()["model"] == patch.info()["model"]
    assert "learning rates 0.008 and 0.012, the best tried for each" in printed
    assert [s["patch_size"] for s in token.info()["plan"]["stages"]] == [1]
    assert [s["patch_size"] for s in patch.info()["plan"]["stages"]] == [2, 1]
    losses = [run.info()["result"]["loss"] for run in (token, patch)]
    verdict = "below" if losses[1] < losses[0] else "above"
    assert f"ended {abs(losses[0] - losses[1]):.4f} nats a token {verdict}" in printed
    assert "too short to compare" in printed
    for run in (token, patch):
        assert f"{run.info()['result']['loss']:.4f}" in printed
        AutoModelForCausalLM.from_pretrained(run.model)
        assert len(run.samples()) == 3
    assert (out / "quick-report.html").is_file()
    assert "quick-patch-level" in progress


def test_the_second_call_reuses_everything(
    demo: tuple[Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed, _ = demo
    before = (out / "quick-patch-level" / "metrics.jsonl").stat().st_mtime
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    again = capsys.readouterr().out
    assert again.count("is there already") == 3
    table = printed[printed.index("At equal compute") : printed.index("page ")]
    assert table in again
    assert (out / "quick-patch-level" / "metrics.jsonl").stat().st_mtime == before


def test_only_the_same_finished_run_is_reused(demo: tuple[Path, str, str]) -> None:
    out = demo[0]
    store = TokenStore.open(out / "store")
    recipe = demo_recipes(store, out, quick=True)[0]
    assert is_done(recipe, store)
    assert not is_done(demo_recipes(store, out, quick=True, seed=SEED + 1)[0], store)
    folder = RunFolder(recipe.out)
    info = folder.info()
    for change in ({"status": "interrupted"}, {"store": {"fingerprint": "of other text"}}):
        folder.write_info({**info, **change})
        assert not is_done(recipe, store)
    folder.write_info(info)


def test_a_folder_with_other_things_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "store").mkdir()  # a name the demo uses
    for flags in ([], ["--overwrite"]):
        assert main(["demo", "--quick", "--out", str(tmp_path), *flags]) == 2
        assert "holds something else" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path / "thesis.tex")]) == 2
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
