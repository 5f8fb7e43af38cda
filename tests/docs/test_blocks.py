"""Every command and every Python block of every page runs.

``RUNS`` is for pages whose blocks run in a test of their own. Those of the other pages run here, in
order, in a folder that has what a reader has by then: text under the pages' own placeholder names,
a small checkpoint, a store, a trained run. ``train`` gets a shorter plan, and nothing else is
changed but what ``CHANGED`` names. A command that needs what a test cannot have (a cluster, a GPU,
another machine, hours) is read by the program's own parser; ``PARSED`` says why.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchtrain.cli.main import build_parser, main
from patchtrain.cli.train import explicit
from patchtrain.data.prepare import prepare
from patchtrain.errors import UsageError
from patchtrain.recipe import Recipe
from tests.cli.corpus import write_corpus
from tests.cli.test_resume import stop_at
from tests.docs.reading import ROOT, Block, blocks, commands, pages, text_of
from tests.evaluation.chatty import write_lines
from tests.evaluation.task_folder import write_task_folder
from tests.evaluation.tiny import save_tiny_model
from tests.models import VOCAB, tiny_model

RUNS = {
    "README.md": "tests/test_readme.py",
    "docs/advice.md": "tests/advice/test_recommend.py",
    "docs/bring-your-data.md": "tests/test_bring_your_data.py",
    "docs/cluster.md": "tests/training/test_nodes.py",
    "docs/command-line.md": "tests/test_readme.py",
    "docs/compare.md": "tests/cli/test_compare.py",
    "docs/cost.md": "tests/test_readme.py",
    "docs/evaluation.md": "tests/test_readme.py",
    "docs/instructions.md": "tests/test_readme.py",
    "docs/surviving.md": "tests/test_readme.py",
    "docs/use.md": "tests/test_use.py",
    "docs/watch.md": "tests/test_readme.py",
    "docs/reference/examples.md": "tests/test_examples.py",
}
# How a command begins, and why it is only parsed.
PARSED = {
    "patchtrain demo": "it takes a minute; tests/cli/test_demo.py runs it on less",
    "patchtrain compare": "it trains many runs; tests/cli/test_compare.py does so",
    "patchtrain study": "it trains many runs; tests/cli/test_study.py and test_compare.py do so",
    "patchtrain prepare corpus/ --out stores/web --tokenizer gpt2 --executor": "it starts workers "
    "on this machine, Slurm or Ray; the tests of tests/data do so",
    "patchtrain eval runs/small --tasks blimp,sciq": "it fetches tasks from the network; the one "
    "without a network runs",
    "patchtrain inspect book.txt": "its tokenizer is on the network; tests/cli/test_inspect.py",
    "patchtrain plan recipes/papers/patch-7b.yaml": "it takes long on a small machine",
    "patchtrain train recipes/papers/patch-7b.yaml store=stores/text rehearse=true": "docs/cost.md "
    "has it too, and runs",
    "torchrun": "it needs several GPUs or machines; tests/training start the same on CPUs",
    "accelerate": "the same",
    "sbatch": "it needs a cluster; tests/training/test_cluster.py plays one",
    "sky": "the same",
    "kubectl": "the same",
    "pip": "it installs; the extra it names is one of pyproject.toml",
    "python": "tests/test_benchmarks.py runs each benchmark small",
}
SHORT = ["plan.steps=10", "plan.tokens_per_step=1024", "plan.max_epochs=99",
         "training.eval_steps=0.5", "training.save_steps=0.5", "--quiet"]  # fmt: skip
# Of a page's Python, what a test has less of: time, memory, network.
CHANGED = {
    "max_steps=1000": "max_steps=6, use_cpu=True, disable_tqdm=True",
    '"context_length": 1024, "epochs": 1': '"context_length": 32, "tokens_per_step": 1024, '
    '"steps": 6',
    "LlamaConfig()": "LlamaConfig(num_hidden_layers=1, vocab_size=4000)",
    "80 * 10**9": "10**9",
    "per_device_train_batch_size=4)": "per_device_train_batch_size=4, use_cpu=True, "
    "disable_tqdm=True)",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "YOUR-TEXT").mkdir()
    (folder / "HELD-OUT").mkdir()
    write_corpus(folder / "YOUR-TEXT" / "text.txt", sentences=2000)
    held_out = write_corpus(folder / "HELD-OUT" / "text.txt", sentences=100, seed=1)
    rows = [{"text": line} for line in held_out.read_text().splitlines()]
    write_lines(folder / "held-out.jsonl", rows)
    save_tiny_model(folder / "MODEL")
    prepare([folder / "YOUR-TEXT"], folder / "stores/text", train_tokenizer="bpe", vocab_size=300)
    prepare([folder / "YOUR-TEXT"], folder / "stores/mine", tokenizer=str(folder / "MODEL"))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "recipes/small.yaml", *SHORT]) == 0
        shutil.copytree("runs/small", "runs/token-level")
    return folder


@pytest.fixture
def place(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    place = tmp_path / "place"
    shutil.copytree(bench, place, symlinks=True)
    monkeypatch.chdir(place)
    return place


def reason(words: list[str]) -> str | None:
    """Why a command is only parsed, if it is."""
    line = " ".join(words)
    return next((why for start, why in PARSED.items() if f"{line} ".startswith(f"{start} ")
                 or (start.endswith("--executor") and line.startswith(start))), None)  # fmt: skip


def parsed(words: list[str]) -> None:
    """The command read by its own program's parser, down to the ``patchtrain`` it starts."""
    import torch.distributed.run
    from accelerate.commands.launch import launch_command_parser

    program, rest = words[0], words[1:]
    if program == "patchtrain":
        rest = explicit(rest) if rest[0] == "train" else rest
        args, left = build_parser().parse_known_args(rest)
        # argparse gives up on key=value pairs that follow a flag: the command takes them.
        assert not [word for word in left if word.startswith("-")], words
        if rest[0] == "train" and Path(args.recipe).exists():
            Recipe.load(args.recipe, [*args.overrides, *left])
    elif program in ("torchrun", "accelerate"):
        if program == "torchrun":
            told = torch.distributed.run.parse_args(rest)
        else:
            told = launch_command_parser().parse_args(rest[1:])
        assert (told.module, told.training_script) == (True, "patchtrain")
        parsed(["patchtrain", *told.training_script_args])
    elif program == "pip":
        for name in re.findall(r"\[([\w,]+)\]", words[-1]):
            assert f"\n{name} = [" in text_of("pyproject.toml"), words
    elif program == "python" and rest[0] != "-m":
        assert (ROOT / rest[0]).is_file(), words
    elif rest[:2] == ["-m", "lm_eval"]:
        pytest.importorskip("lm_eval")
        from lm_eval._cli import HarnessCLI

        HarnessCLI()._parser.parse_args(["run", *rest[2:]])
    else:
        files = [word for word in rest if "/" in word]
        assert files, words
        assert all((ROOT / file).exists() for file in files), words


OWN = [page for page in pages() if page not in RUNS and commands(page)]


@pytest.mark.parametrize("page", OWN)
def test_the_commands_of_a_page_run_in_order(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "docs/zero-shot.md":
        pytest.importorskip("lm_eval")
        write_task_folder(place / "DATA")
        (place / "PACKAGE").mkdir()
    listed = commands(page)
    if page == "docs/start.md":  # the README has most of it, and tests/test_readme.py runs that
        listed = [words for words in listed if words not in commands("README.md")]
    if any(words[:3] == ["patchtrain", "train", "recipes/small.yaml"]
           and not any(word.startswith("out=") for word in words) for words in listed):  # fmt: skip
        shutil.rmtree("runs/small")
    for words in listed:
        if reason(words):
            parsed(words)
            continue
        assert words[0] == "patchtrain", words
        assert call(page, words[1:], monkeypatch) == 0, words
    assert capsys.readouterr().out or all(reason(words) for words in listed)


def call(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """One command, on less than a reader gives it."""
    if words[0] == "prepare":
        words = [*words, "--overwrite"]
    if words[0] == "train":
        words = [*words, *SHORT]
        if "recipes/continue.yaml" in words:
            words += ["plan.epochs=null", "plan.context_length=32", "training.bf16=false"]
        if page == "docs/how-to/resume.md" and not Path("runs/small").exists():
            with monkeypatch.context() as patch:  # "dies somewhere"
                stop_at(patch, 5)
                assert main(words) == 143
            return 0
    if words[0] == "plan" and "recipes/continue.yaml" in words:
        words = [*words, "plan.context_length=32", "plan.tokens_per_step=1024"]
    return main(words)


def names_of(page: str) -> dict[str, Any]:
    """What the Python of a page takes for granted."""
    datasets = pytest.importorskip("datasets")
    from transformers import TrainingArguments

    model = tiny_model(max_position_embeddings=32)
    body = tiny_model(seed=1)

    class Body(nn.Module):
        def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
            return body.model(inputs_embeds=embeddings).last_hidden_state

    ids = torch.randint(0, VOCAB, (2, 32))
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, VOCAB, (96, 32)).tolist()]
    args = TrainingArguments("plain", max_steps=6, use_cpu=True, report_to="none",
                             save_strategy="no", disable_tqdm=True)  # fmt: skip
    return {
        "model": model, "args": args, "dataset": datasets.Dataset.from_list(rows * 4), "ids": ids,
        "transformer": Body(), "embed": body.get_input_embeddings(), "head": body.lm_head,
        "recipe": {"plan": {}},
    }  # fmt: skip


PYTHON = [block for page in pages() if page not in RUNS for block in blocks(page, "python")]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}:{block.line}")
def test_the_python_of_a_page_runs(
    block: Block, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = block.text
    for written, less in CHANGED.items():
        code = code.replace(written, less)
    names = names_of(block.page)
    if "run_study" in code:
        told = studies_are_planned_only(monkeypatch)
        names["recipe"] = Recipe.load("recipes/small.yaml").model_dump(mode="json")
    exec(compile(code, f"{block.page}:{block.line}", "exec"), names)
    if "run_study" in code:
        ((study, out),) = told
        assert len({arm.name for arm in study.arms}) == 2
        assert str(out) == "studies/optimizers"
    if "loss" in names:
        assert names["loss"].isfinite()
    if "trainer" in names:
        assert names["trainer"].state.global_step == 6


def studies_are_planned_only(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """From now on a study is written down, not run: tests/analysis/studies runs them."""
    from patchtrain.analysis import studies

    told: list[Any] = []
    monkeypatch.setattr(studies, "run_study", lambda study, out: told.append((study, out)))
    return told


@pytest.mark.parametrize("page", RUNS)
def test_a_page_with_a_test_of_its_own_is_read_there(page: str) -> None:
    name = Path(page).name if page != "docs/reference/examples.md" else "examples"
    assert f'"{name}"' in text_of(RUNS[page])


def shown() -> Iterator[tuple[str, list[str]]]:
    """Commands that pages show in other blocks, such as a command's help."""
    for page in pages():
        for block in blocks(page, "text", "sh", "yaml", ""):
            joined = re.sub(r"\\\n\s*", "", block.text)
            for line in re.findall(r"^ *(?:\S+ \| )?(patchtrain \w.*)", joined, re.MULTILINE):
                yield page, re.split(r" {2,}|  ?#", line)[0].split(" ")


def test_commands_shown_in_other_blocks_are_commands() -> None:
    found = list(shown())
    assert len(found) > 40
    for page, words in found:
        known = re.sub("'[^']*'|\"[^\"]*\"", "X", " ".join(words)).split()
        try:
            parsed([word for word in known if word not in ("|", "...")])
        except UsageError:
            pytest.fail(f"{page}: {' '.join(words)}")


def test_every_reason_is_needed() -> None:
    found = [words for page in OWN for words in commands(page)]
    for start, why in PARSED.items():
        assert why in [reason(words) for words in found], start
