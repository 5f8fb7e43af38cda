"""``patchtrain eval --inside`` from a run, and again from its exported model alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchtrain.analysis.inside import cut_rows
from patchtrain.cli.main import main
from patchtrain.data.store import StoreWriter, TokenStore
from patchtrain.evaluation.loading import load_model
from patchtrain.modeling import patch_level
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.tiny import TEXT, save_tiny_model, save_tiny_run, tiny_tokenizer

DOCUMENTS = [TEXT, "Le café est fermé. " * 12, "A cell divides. " * 30]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inside")
    tokenizer = tiny_tokenizer()
    (folder / "store").mkdir()
    with StoreWriter(folder / "store", tokenizer) as writer:
        for split in ("train", "validation"):
            for text in DOCUMENTS:
                ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
                writer.add(split, np.array(ids), [len(ids)], len(text.encode()), len(text.split()))
        writer.finish({})
    plan = {"context_length": 16, "stages": [{"patch_size": 3}, {"patch_size": 1}]}
    run = save_tiny_run(folder / "run", folder / "store", plan=plan)
    save_tiny_model(run / "stage-1")
    return run


def test_all_of_it_is_kept_and_on_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--inside"]) == 0
    out = capsys.readouterr().out
    for said in ("feed-forward outputs beyond 0.5", "loss by token", "1 / sqrt(K)", "words cut",
                 "from one model to the next", "written to"):  # fmt: skip
        assert said in out
    result = RunFolder(run).evaluation()["inside"]["inside"]
    assert [entry["model"] for entry in result["models"]] == ["stage-1", "model"]
    for model in result["models"]:
        assert [level["patch_size"] for level in model["levels"]] == [1, 2, 3, 4, 8]
        for level in model["levels"]:
            assert len(level["slots"]) == level["patch_size"]
            assert len(level["layers"]) == 1
    # The same seed made both models.
    assert result["drift"] == [
        {"from": "stage-1", "to": "model", "cosine": pytest.approx(1), "norm_ratio": 1.0}
    ]
    assert [entry["patch_size"] for entry in result["content"]["patches"]] == [1, 2, 3, 4, 8]
    page = write_page([RunFolder(run)], run / "report.html").read_text("utf-8")
    assert page.count("plotly.js v") == 1  # though there is no curve of a loss
    assert page.index("plotly.js v") < page.index('id="neurons-0"')
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S))
    for said in ("Inside the model", "Activated neurons by layer", "token 8", "1 / sqrt(K)",
                 "words cut", "arXiv:2407.12665"):  # fmt: skip
        assert said in text


def test_the_exported_model_alone_gives_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*words: object) -> dict[str, Any]:
        assert (
            main(["eval", *map(str, words), "--inside", "--json", "--patch-sizes", "1", "4"]) == 0
        )
        (values,) = json.loads(capsys.readouterr().out)["inside"].values()
        return dict(values)

    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS)
    (tmp_path / "t.jsonl").write_text(lines, encoding="utf-8")
    source = ["--text", tmp_path / "t.jsonl", "--context-length", 16]
    kept = found(run, *source, "--name", "text")
    alone = found(run / "model", *source, "--name", "text", "--out", tmp_path / "e.json")
    assert alone["models"] == [{**kept["models"][-1], "path": alone["models"][0]["path"]}]
    assert alone["content"] == kept["content"]
    assert read_evaluation(tmp_path / "e.json")["inside"]["text"] == alone
    # The store holds the same documents.
    stored = found(run, "--name", "stored", "--context-length", 16)
    assert stored["models"][-1]["levels"] == kept["models"][-1]["levels"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patch-sizes", "0"], "--patch-sizes must be at least 1"),
        (["--threshold", "nan"], "--threshold must be a number"),
        (["--max-tokens", "1"], "--max-tokens must be at least 2"),
        (["--text", "a", "--store", "b"], "give one"),
        (["--patch-sizes", "4096"], "fewer than two patches of 4096"),
    ],
)
def test_wrong_usage_is_one_line(
    options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), "--inside", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_without_a_run_needs_a_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run / "model"), "--inside"]) == 2
    assert "say what to read, --text FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("setting", "value", "level"), [
    ("embedding_scale", "sqrt", {"embedding_scale": 2.0}),
    ("position_scale", "patch", {"position_scale": 4}),
    ("pool_weights", "recent", {"pool_weights": [4 / 15, 8 / 15, 16 / 15, 32 / 15]}),
    ("pool_order", "rotate", {"pool_order": "rotate"}),
])  # fmt: skip
def test_patches_are_read_as_the_run_trained_them(
    setting: str,
    value: str,
    level: dict[str, Any],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def losses(folder: Path) -> dict[int, float]:
        capsys.readouterr()
        assert main(["eval", str(folder), "--inside", "--json", "--context-length", "8"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["inside"].values()
        assert (f", {setting} {value}" in result["read"]) == (folder != run)
        return {one["patch_size"]: one["loss"] for one in result["models"][-1]["levels"]}

    scaled = shutil.copytree(run, tmp_path / "scaled")
    info = RunFolder(scaled).info()
    info["plan"][setting] = value
    RunFolder(scaled).write_info(info)
    plain, found = losses(run), losses(scaled)
    assert found[1] == plain[1]
    # A model of 32 positions has none for the eighth patch of 8 tokens, 56 tokens on.
    assert list(found) == ([1, 2, 3, 4] if setting == "position_scale" else [1, 2, 3, 4, 8])

    loaded = load_model(run)
    tokens = TokenStore.open(run.parent / "store").validation.tokens.astype(np.int64)
    rows = torch.from_numpy(cut_rows(tokens, 4, 8))
    with patch_level(loaded.model, 4, **level):
        expected = loaded.model(input_ids=rows, labels=rows).loss.item()
    assert found[4] == pytest.approx(expected, rel=1e-5)
    assert found[4] != pytest.approx(plain[4], rel=1e-4)
