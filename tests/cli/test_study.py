"""The studies as a user starts them; their runs pretended, which `test_runner.py` trains."""

import json
from pathlib import Path

import pytest
import yaml

from patchtrain.analysis.studies import runner
from patchtrain.analysis.studies.study import claim, start_over
from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.data.tokenizer import train
from patchtrain.runs import RunFolder
from patchtrain.stage import ABLATIONS
from tests.analysis.studies.tiny import Pretended, recipe
from tests.cli.corpus import write_corpus

SMALL = [
    "model.config.hidden_size=16", "model.config.num_hidden_layers=1",
    "model.config.intermediate_size=32", "plan.context_length=16", "plan.tokens_per_step=128",
    "training.eval_tokens=64", "training.eval_steps=0.5", "training.per_device_train_batch_size=8",
    "plan.max_epochs=50",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt", sentences=2000)


def test_the_ablation_of_a_recipe(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "_popen", Pretended)
    store = prepare([corpus], tmp_path / "store", train_tokenizer="byte").path
    values = recipe(store, patch_size=2, step_fraction=0.3)
    file, out = tmp_path / "small.yaml", tmp_path / "study"
    file.write_text(yaml.safe_dump(values))
    command = ["study", "ablation", str(file), "plan.steps=10", "--seeds", "3", "--out", str(out)]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "9 runs: 9 arms with seeds 3" in printed
    assert not (out / "runs").exists()
    assert main([*command, "--quiet"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    assert found["complete"]
    assert {arm["name"] for arm in found["arms"]} > set(ABLATIONS)
    for arm in found["arms"]:
        assert abs(arm["off"]) < 0.06  # half of one of ten steps
        assert f"{arm['runs'][0]['bits_per_byte']:.4f}" in printed
    assert str(out / "report.html") in printed
    assert main(["study", "ablation", str(file), "plan.steps=12", "--out", str(out)]) == 2
    assert "holds another study" in capsys.readouterr().err


def test_tokenizers_of_a_corpus(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "_popen", Pretended)
    own = train("bpe", corpus.read_text().splitlines(), 280)
    own.save_pretrained(tmp_path / "own")
    out = tmp_path / "study"
    assert main([
        "study", "tokenizers", str(corpus), *SMALL, "--steps", "8", "--seeds", "0", "--out",
        str(out), "--vocab-size", "300", "--tokenizer", f"own={tmp_path / 'own'}", "--json",
        "--quiet", "--keep", "results",
    ]) == 0  # fmt: skip
    assert not list(out.glob("runs/*/model"))
    found = json.loads(capsys.readouterr().out)
    names = [arm["name"].rpartition("-")[0] for arm in found["arms"]]
    assert list(dict.fromkeys(names)) == ["bpe", "unigram", "char", "byte", "own"]
    assert len({arm["notes"]["validation_bytes"] for arm in found["arms"]}) == 1
    assert all(arm["runs"] for arm in found["arms"])
    sizes = {arm["name"]: arm["notes"]["vocab_size"] for arm in found["arms"]}
    assert 257 < sizes["bpe-tokens"] <= 300
    assert sizes["byte-tokens"] == 257
    assert sizes["own-tokens"] == 280


def test_a_store_made_from_something_else_is_not_trained_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(runner, "_popen", Pretended)
    other = write_corpus(tmp_path / "other.txt", sentences=2100)
    own = train("bpe", corpus.read_text().splitlines(), 280)
    for name in ("own", "own2"):
        own.save_pretrained(tmp_path / name)

    def study(kind: str, *words: str) -> int:
        return main(["study", kind, *words, *SMALL, "--steps", "8", "--seeds", "0", "--quiet",
                     "--out", str(tmp_path / kind)])  # fmt: skip

    assert study("ablation", str(corpus), "--dry-run") == 0
    assert study("ablation", str(other)) == 2
    said = capsys.readouterr().err
    assert f"was made from {corpus} (bpe, 512 entries), not from {other} (bpe, 512 entries)" in said
    assert "--overwrite" in said
    assert not (tmp_path / "ablation" / "study.json").exists()
    assert study("ablation", str(corpus)) == 0

    words = [str(corpus), "--vocab-size", "300", f"--tokenizer=own={tmp_path / 'own'}"]
    assert study("tokenizers", *words) == 0
    assert study("tokenizers", *words) == 0
    file = tmp_path / "tokenizers" / "study.json"
    written = json.loads(file.read_text())
    assert written["about"].pop("vocab_size") == 300
    file.write_text(json.dumps(written))  # as earlier versions have it
    assert study("tokenizers", *words) == 0
    capsys.readouterr()
    assert study("tokenizers", *words, "--vocab-size", "400") == 2
    assert "(bpe, 300 entries), not from" in capsys.readouterr().err
    assert study("tokenizers", *words[:-1], f"--tokenizer=own={tmp_path / 'own2'}") == 2
    assert f"(tokenizer {tmp_path / 'own2'});" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tokenizers", "--tokenizer", "file.json"], "is not NAME=FILE"),
        (["tokenizers", "--tokenizer", "bpe=file.json"], "the name 'bpe' is taken"),
        (["ablation", "--steps", "0"], "--steps must be at least 1"),
        (["ablation", "--workers", "0"], "--workers must be at least 1"),
        (["ablation", "no/such.yaml"], "no recipe at"),
        (["ablation", "no-such-text"], "no-such-text"),
    ],
)
def test_what_cannot_be_studied_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *words, "--out", str(tmp_path / "study")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("patchtrain: error") == 1


def test_each_study_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for study in ("ablation", "tokenizers"):
        with pytest.raises(SystemExit) as stopped:
            main(["study", study, "--help"])
        assert stopped.value.code == 0
        assert f"patchtrain study {study} --out" in capsys.readouterr().out


def test_overwrite_starts_over_in_a_studys_folder_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["study", "ablation", "--overwrite", "--out", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_touches_no_study_that_is_running_and_nothing_for_a_dry_run(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(tmp_path)
    run = tmp_path / "runs" / "first" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    command = ["study", "ablation", str(corpus), *SMALL, "--overwrite", "--out", str(tmp_path)]
    with RunFolder(tmp_path).locked():
        assert main(command) == 2
    assert "is still training in" in capsys.readouterr().err
    assert main([*command, "--dry-run"]) == 0
    assert run.is_file()
    start_over(tmp_path)
    assert not run.parent.exists()
    claim(tmp_path)  # it is still a study's
