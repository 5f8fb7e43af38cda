"""The commands of docs/bring-your-data.md run, on files that the tools wrote."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from patchtrain.cli.main import main
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.store import TokenStore
from patchtrain.runs import RunFolder
from tests.data.foreign import FILES, TEXTS

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "bring-your-data.md").read_text(encoding="utf-8")
PLACES = {
    "nanogpt": "data/openwebtext",
    "llmc": "fineweb10B",
    "litdata": "litdata",
    "datatrove/train": "datatrove/part-1",
    "datatrove/val": "datatrove/part-2",
}


def test_the_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, place in PLACES.items():
        shutil.copytree(FILES / source, tmp_path / place)
    (tmp_path / "megatron").mkdir()
    for ending in ("bin", "idx"):
        shutil.copy(
            FILES / "megatron" / f"tiny_train_text_document.{ending}",
            tmp_path / "megatron" / f"corpus_text_document.{ending}",
        )
    shutil.copytree(FILES / "nanogpt", tmp_path / "unknown")
    tokenizers.train("byte", [""]).save_pretrained(tmp_path / "TOKENIZER")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 9
    short = ["plan.steps=8", "plan.tokens_per_step=64", "plan.context_length=16",
             "training.eval_steps=0.5", "training.save_steps=0.5", "--quiet"]  # fmt: skip
    for command in commands:
        words = shlex.split(command)[1:]
        train = words[0] == "train"
        assert main([*words, *([*short, "plan.max_epochs=9"] if train else [])]) == 0, command
        if train and "unknown" not in command:
            result = RunFolder(Path("runs/small")).info()["result"]
            assert result["bits_per_byte"] > 0
            shutil.rmtree("runs")
    shown = capsys.readouterr().out
    assert "bits per byte \N{EN DASH}" in shown or "unknown bits per byte" in shown
    result = RunFolder(Path("runs/small")).info()["result"]
    assert result["bits_per_byte"] is None
    assert result["loss"] > 0
    assert not list(Path("runs/small/model").glob("tokenizer*"))
    assert main(["generate", "runs/small", "The "]) == 2
    assert "has no tokenizer, which this needs" in capsys.readouterr().err
    stores = {path.name: TokenStore.open(path) for path in Path("stores").iterdir()}
    assert stores.keys() == {"owt", "fineweb", "corpus", "slimpajama", "web", "unknown"}
    both = stores["web"].train.documents + stores["web"].validation.documents
    assert both == len(TEXTS["train"]) + len(TEXTS["val"])
