"""``patchtrain export`` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from patchtrain.cli.main import main
from tests.evaluation.tiny import save_tiny_run
from tests.exporting.small import save


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = save_tiny_run(tmp_path / "small")
    save(folder / "model", "llama")
    return folder


def test_gguf_goes_into_the_run_or_where_it_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    assert main(["export", str(run), "--to", "gguf"]) == 0
    assert (run / "small-f16.gguf").read_bytes()[:4] == b"GGUF"
    assert f"{run / 'small-f16.gguf'}: llama, 20 weights" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "gguf"]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "gguf", "--overwrite"]) == 0
    out = tmp_path / "m.gguf"
    words = ["export", str(run / "model"), "--to", "gguf", "--out", str(out), "--dtype", "q8_0"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == out.stat().st_size
    assert told["dtype"] == "q8_0"


def test_hf_in_another_dtype(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model" / "README.md").write_text("# card\n", encoding="utf-8")
    words = ["export", str(run), "--to", "hf", "--dtype", "bf16", "--out", str(tmp_path / "half")]
    assert main(words) == 0
    assert "LlamaForCausalLM in bfloat16" in capsys.readouterr().out
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    whole = AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto")
    assert half.dtype == torch.bfloat16
    for ours, theirs in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(torch.bfloat16))
    assert (tmp_path / "half" / "README.md").is_file()
    assert (tmp_path / "half" / "generation_config.json").is_file()


def test_the_check_says_who_and_why(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    assert main(["export", str(run), "--check"]) == 0
    told = capsys.readouterr().out
    assert "transformers  yes" in told
    assert "vllm          yes" in told
    save(run / "model", "llama", "unigram")
    assert main(["export", str(run), "--check", "--json"]) == 1
    gguf = json.loads(capsys.readouterr().out)[1]
    assert gguf["takes"] is False
    assert "only byte-level BPE" in gguf["reasons"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --to gguf, --to hf or --check"),
        (["--to", "gguf", "--check"], "give either"),
        (["--check", "--dtype", "f16"], "--check writes nothing"),
        (["--to", "hf", "--dtype", "q8_0"], "for --to gguf only"),
        (["--to", "hf"], "needs --out FOLDER"),
        (["--to", "gguf", "--out", "no/where.gguf"], "there is no folder no"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    assert main(["export", str(run), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_not_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    words = ["export", str(run), "--to", "hf", "--out", str(tmp_path / "mine"), "--overwrite"]
    assert main(words) == 2
    assert "is not a model folder" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert main([*words[:5], str(run / "model"), "--overwrite"]) == 2
    assert "is the model itself" in capsys.readouterr().err
