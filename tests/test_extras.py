"""A plain install: every module imports without the extras, and what needs one names it."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.errors import UsageError
from patchtrain.extras import PACKAGES, require
from patchtrain.training.config import PatchConfig
from tests.cli.corpus import write_corpus
from tests.cli.test_train import write_recipe
from tests.evaluation.chatty import PROMPTS, save_chatty_run, write_lines

ROOT = Path(__file__).parents[1]
OPTIONAL: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
# They are a subclass of, or a program for, what the extra brings; nothing imports them before it
# has asked for that.
BUILT_ON_AN_EXTRA = {"patchtrain.tuning.trainer": "trl", "patchtrain.data.engine": "datatrove"}

IMPORT_ALL = """
import importlib, json, pkgutil, sys
absent, built_on = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(absent))
import patchtrain
found = {}
for module in pkgutil.walk_packages(patchtrain.__path__, "patchtrain."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        found[module.name] = error.name.split(".")[0]
assert found == built_on, found
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, in a folder with what the commands read besides."""
    write_lines(tmp_path / "prompts.jsonl", PROMPTS)
    write_lines(tmp_path / "rows.json", [{"instruction": "What?", "output": "That."}])
    corpus = write_corpus(tmp_path / "text.txt", sentences=2000)
    prepare([corpus], tmp_path / "store", train_tokenizer="byte")
    write_recipe(tmp_path, tmp_path / "store")
    return save_chatty_run(tmp_path / "chatty")


def normal(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0].lower().replace("_", "-")


def test_every_module_imports_without_any_extra() -> None:
    asked = json.dumps([list(PACKAGES), BUILT_ON_AN_EXTRA])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, asked], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_each_package_is_in_the_extra_that_is_named_for_it() -> None:
    for package, (shown, extra) in PACKAGES.items():
        assert normal(shown) == package.replace("_", "-")
        assert normal(shown) in {normal(entry) for entry in OPTIONAL[extra]}


def test_all_brings_every_extra_of_the_package() -> None:
    (everything,) = OPTIONAL["all"]
    named = set(re.findall(r"\[(.*)\]", everything)[0].split(","))
    assert named == {extra for _, extra in PACKAGES.values()}
    assert named == OPTIONAL.keys() - {"all", "dev", "docs", "examples"}


@pytest.mark.parametrize(("package", "words"), [
    ("lm_eval", "eval RUN --tasks blimp"),
    ("lm_eval", "eval RUN --ifeval --prompts prompts.jsonl"),
    ("trl", "sft RUN --data rows.json"),
    ("datatrove", "prepare text.txt --out s --executor local"),
    ("optuna", "study sweep recipe.yaml --over r=0.1..0.3 --search random"),
    ("gguf", "export RUN --to gguf"),
    ("tensorboard", "train recipe.yaml training.report_to=tensorboard"),
])  # fmt: skip
def test_a_command_that_needs_an_extra_names_it(
    package: str, words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(run.parent)
    assert main(words.replace("RUN", run.name).split()) == 2
    said = capsys.readouterr()
    shown, extra = PACKAGES[package]
    assert f"needs {shown}: pip install 'patchtrain[{extra}]'" in said.err
    assert said.err.count("\n") == 1


def test_what_is_there_but_broken_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "trl.py").write_text("from transformers import NoSuchThing")
    monkeypatch.delitem(sys.modules, "trl", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"tuning needs TRL \(.*NoSuchThing.*\): pip install"):
        require("trl", "tuning")


def test_a_script_learns_it_when_it_makes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"patchtrain\[plots\]"):
        PatchConfig("out", report_to="tensorboard")
