"""Completion in a real shell."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from patchtrain.cli import completion
from patchtrain.cli.main import main
from patchtrain.data.sharded import EXECUTORS
from patchtrain.data.tokenizer import KINDS
from patchtrain.recipe import ModelSection
from patchtrain.training.config import DERIVED, PatchConfig

ROOT = Path(__file__).parents[2]
# What bash does at a Tab: the function that is registered for the command is called.
_TAB = """
eval "$(patchtrain completion bash)"
registered=$(complete -p patchtrain); registered=${registered#*-F }; function=${registered%% *}
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$function patchtrain "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command on the path, recipes and a run."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "bin").mkdir()
    command = folder / "bin" / "patchtrain"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m patchtrain "$@"\n')
    command.chmod(0o755)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "runs" / "small").mkdir(parents=True)
    (folder / "notes.txt").touch()
    return folder


def tab(here: Path, line: str) -> list[str]:
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    path = os.pathsep.join([str(here / "bin"), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "--norc", "-c", _TAB, "bash", line],
        cwd=here, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return [word.strip() for word in done.stdout.splitlines() if word.strip()]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("patchtrain tr", ["train"]),
        ("patchtrain study s", ["sweep"]),
        ("patchtrain plan recipes/small.yaml --utili", ["--utilisation"]),
        ("patchtrain train recipes/sm", ["recipes/small.yaml"]),
        ("patchtrain eval runs/", ["runs/small/"]),
        ("patchtrain inspect runs --format js", ["jsonl"]),
        ("patchtrain prepare notes.txt --executor s", ["slurm"]),
        ("patchtrain completion f", ["fish"]),
        ("patchtrain train recipes/small.yaml plan.patch_s", ["plan.patch_size="]),
        (
            "patchtrain train recipes/small.yaml model.config.hidden_s",
            ["model.config.hidden_size="],
        ),
        ("patchtrain train recipes/small.yaml training.weight_d", ["training.weight_decay="]),
        ("patchtrain generate runs/small hello --top", ["--top-k", "--top-p"]),
    ],
)
def test_a_tab_in_bash(here: Path, line: str, found: list[str]) -> None:
    assert sorted(tab(here, line)) == found


def test_values_of_an_entry_follow_its_equals_sign(here: Path) -> None:
    # Where = parts words, as it does unless told otherwise, bash wants only what follows it.
    assert tab(here, "patchtrain train recipes/small.yaml plan.preset=su") == ["superposition"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "patchtrain" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)


def test_values_are_those_of_their_source() -> None:
    assert completion._VALUES == {"--executor": EXECUTORS, "--train-tokenizer": KINDS}
    assert completion._values("model.dtype") == get_args(
        ModelSection.model_fields["dtype"].annotation
    )


def test_training_keys_are_those_that_a_recipe_takes() -> None:
    names = {field.name for field in fields(PatchConfig) if field.init}
    assert completion.training_keys() == names - {"plan", *DERIVED}


def test_a_broken_recipe_completes_what_is_known(tmp_path: Path) -> None:
    from argparse import Namespace

    (tmp_path / "broken.yaml").write_text("plan: [")
    for recipe in ("broken.yaml", "none.yaml"):
        words = completion.entries("plan.p", Namespace(recipe=str(tmp_path / recipe)))
        assert "plan.patch_size=" in words
