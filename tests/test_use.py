"""docs/use.md: its commands run in order, and what it shows is what they print."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from patchtrain import chat
from patchtrain.cli.main import main
from patchtrain.evaluation.loading import load_model
from patchtrain.exporting.gguf_model import ARCHITECTURES
from tests.evaluation.chatty import CONTEXT, save_chatty_run
from tests.evaluation.tiny import save_tiny_model

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")


def test_the_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    run = save_chatty_run(tmp_path / "runs" / "small")
    info = json.loads((run / "run.json").read_text())
    info["plan"] = {"context_length": CONTEXT, "stages": [{"patch_size": 2}, {"patch_size": 1}]}
    (run / "run.json").write_text(json.dumps(info))
    save_tiny_model(run / "stage-1")
    tuned = save_chatty_run(tmp_path / "runs" / "small-sft")
    info = json.loads((tuned / "run.json").read_text()) | {"tuning": {"from": "runs/small/model"}}
    (tuned / "run.json").write_text(json.dumps(info))
    loaded = load_model(tuned)
    chat.use_template(loaded.tokenizer)
    loaded.tokenizer.save_pretrained(tuned / "model")
    (tmp_path / "prompts.txt").write_text("The cell\nA leaf\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for command in block.splitlines():
        words = shlex.split(command)[1:]
        if words[0] in ("generate", "chat"):
            words += ["--max-new-tokens", "8"]
        monkeypatch.setattr("sys.stdin", io.StringIO("What is a cell?\n"))
        assert main(words) == 0, command
    assert (tmp_path / "runs" / "small" / "small-f16.gguf").is_file()
    assert (tmp_path / "small-bf16" / "config.json").is_file()
    assert (tmp_path / "runs" / "small" / "model" / "README.md").is_file()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"prompt"')]
    shown = next(line for line in TEXT.splitlines() if line.startswith('{"prompt"'))
    assert list(json.loads(shown)) == list(json.loads(rows[0]))


def test_the_architectures_are_those_that_are_written() -> None:
    assert f"| architecture | {', '.join(ARCHITECTURES)} |" in TEXT
