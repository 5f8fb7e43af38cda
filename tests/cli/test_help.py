"""Every help says what a command does in a sentence, and shows examples that run."""

import argparse
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import get_args

import pytest

from patchtrain.advice import recommend
from patchtrain.analysis.studies import runner, search, study
from patchtrain.cli.main import _parsed, build_parser, main
from patchtrain.cli.parser import EXAMPLES, Parser, leaves, split_doc
from patchtrain.data import sources, store_record
from patchtrain.watch import terminal
from tests.cli.corpus import write_corpus
from tests.evaluation.tiny import save_tiny_model, save_tiny_run

ROOT = Path(__file__).parents[2]
PARSERS = {parser.prog: parser for parser in leaves(build_parser())}


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """The leaves, and what divides into them."""
    top = build_parser()
    (commands,) = (action for action in top._actions if action.metavar == "COMMAND")
    assert isinstance(commands.choices, dict)
    return {**PARSERS, top.prog: top, "patchtrain study": commands.choices["study"]}


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The lines below ``examples:``, those that go on with a backslash joined."""
    _, _, block = (parser.description or "").partition(EXAMPLES)
    joined = block.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def words_of(example: str) -> list[str]:
    """The command line of an example, without what stands before it or reads from it."""
    words = shlex.split(example, comments=True)
    words = words[words.index("patchtrain") + 1 :]
    return words[: words.index(">")] if ">" in words else words


@pytest.mark.parametrize("prog", all_parsers())
def test_a_help_is_a_sentence_examples_and_options(prog: str) -> None:
    parser = all_parsers()[prog]
    sentence = " ".join((parser.description or "").split("\n\n")[0].split())
    assert re.fullmatch(r"[A-Z](?!.*\. ).*\.", sentence), sentence
    assert len(sentence) < 170
    shown = examples(parser)
    assert shown
    assert all(line.startswith(prog) or f"| {prog}" in line or f"-m {prog}" in line
               for line in shown)  # fmt: skip
    text = parser.format_help()
    assert text.splitlines()[0].startswith(f"usage: {prog} ")
    assert max(map(len, text.splitlines())) <= 110
    assert all(action.help for action in parser._actions if not isinstance(action.choices, dict))


@pytest.mark.parametrize("prog", all_parsers())
def test_all_examples_parse(prog: str) -> None:
    for example in examples(all_parsers()[prog]):
        args = _parsed(words_of(example))
        assert callable(args.run), example


def test_options_that_mean_the_same_are_called_the_same() -> None:
    meanings: dict[str, set[object]] = {}
    for parser in PARSERS.values():
        for action in parser._actions:
            for name in action.option_strings:
                meanings.setdefault(name, set()).add(type(action).__name__)
    # A switch in one command is no value in another, but for these, which say so in their help.
    mixed = {name for name, kinds in meanings.items() if len(kinds) > 1}
    assert mixed == {"--measure", "--over", "--resume", "--tokenizer"}
    for gone in ("--fresh", "--jobs", "--picture", "--patch-size", "--held-out", "--first"):
        assert gone not in meanings
    for prog, parser in PARSERS.items():
        names = {name for action in parser._actions for name in action.option_strings}
        assert "--debug" in names
        assert ("--json" in names) is (prog != "patchtrain completion")


# Lists that the command line has a second time, since their modules are slow to import.
SOURCES = {
    "--equal": study.HELD,
    "--keep": get_args(runner.Keep),
    "--search": ("grid", *search.SEARCHES),
    "--advise": get_args(recommend.Scarce),
    "--over": tuple(terminal.AXES),
    "--format": sources.FORMATS,
    "--split": store_record.SPLITS,
}


def test_lists_that_stand_here_too_are_those_of_their_source() -> None:
    found = {
        (name, tuple(action.choices))
        for parser in PARSERS.values()
        for action in parser._actions
        for name in action.option_strings
        if name in SOURCES and action.choices
    }
    assert found == set(SOURCES.items())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("work")
    write_corpus(folder / "book.txt", sentences=5000)
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus" / "a.txt", sentences=5000)
    save_tiny_model(folder / "my-model")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    small = folder / "recipes" / "small.yaml"  # for a text of this size
    small.write_text(small.read_text().replace("steps: 6000", "steps: 30"))
    assert main(["prepare", str(folder / "book.txt"), "--out", str(folder / "stores" / "text"),
                 "--tokenizer", str(folder / "my-model"), "--quiet"]) == 0  # fmt: skip
    for name in ("small", "small-sft", "token-level", "patch-level"):
        save_tiny_run(folder / "runs" / name, folder / "stores" / "text")
    return folder


# Those that need neither a network nor minutes; the README's and the guides' commands, which
# `tests/test_readme.py` runs, are of the other kinds.
RUN = (
    "patchtrain prepare book.txt",
    "patchtrain prepare corpus/ --out store --train",
    "patchtrain inspect stores/text",
    "patchtrain plan recipes/papers/patch-370m.yaml --advise",
    "patchtrain plan my-model/config.json",
    "patchtrain plan --device list",
    "patchtrain train recipes/small.yaml --dry-run",
    'patchtrain generate runs/small "The cat"\n',
    'patchtrain generate runs/small "The cat" --num-samples',
    "patchtrain generate runs/small-sft",
    "patchtrain card runs/small",
    "patchtrain export runs/small --to gguf",
    "patchtrain watch runs/small --once",
    "patchtrain compare recipes/small.yaml --dry-run",
    "patchtrain study sweep recipes/small.yaml --over K=2,4,8 --over r=0.2,0.3,0.5 --dry-run",
    "patchtrain report runs/small",
    "patchtrain doctor --no-measure",
    "patchtrain completion",
)


def test_examples_run_as_they_stand(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("patchtrain.data.hub.reachable", lambda: False)
    shown = [line for parser in PARSERS.values() for line in examples(parser)]
    ran = 0
    for start in RUN:
        chosen = [line for line in shown if f"{line}\n".startswith(start)]
        assert chosen, start
        for example in chosen:
            words = words_of(example)
            if words[0] == "prepare":
                words.append("--overwrite")
            assert main(words) == 0, example
            printed = capsys.readouterr()
            assert printed.out, example
            assert "\x1b[" not in printed.out + printed.err, example  # no colour in a file
            ran += 1
    assert ran >= len(RUN)


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "book.txt", "--out", "json-store", "--vocab-size", "300"],
        ["inspect", "stores/text", "--max-tokens", "5000"],
        ["plan", "--device", "list"],
        ["train", "recipes/small.yaml", "--dry-run"],
        ["compare", "recipes/small.yaml", "--dry-run"],
        ["study", "ablation", "recipes/small.yaml", "--out", "s", "--dry-run"],
        ["generate", "runs/small", "The cell", "--max-new-tokens", "3", "--num-samples", "1"],
        ["report", "runs/small"],
        ["eval", "runs/small", "--max-tokens", "500"],
    ],
)
def test_json_is_all_there_is_on_stdout(
    words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(workplace)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found
    if words[0] == "generate":
        assert found["prompt"] == "The cell"
    if words[0] == "prepare":
        assert found["splits"]["train"]["tokens"] > 0
    if words[0] == "study":
        assert found["runs"] == len(found["arms"]) * len(found["seeds"])


def test_a_docstring_is_cut_after_its_examples() -> None:
    assert split_doc("Do it.\n\nexamples:\n  do it\n\nMore.\n\nAnd more.") == (
        "Do it.\n\nexamples:\n  do it",
        "More.\n\nAnd more.",
    )
    assert split_doc("Do it.") == ("Do it.", "")


def test_usage_names_what_is_needed_and_no_more() -> None:
    parser = Parser(prog="x", doc="Do.")
    parser.add_argument("thing", metavar="THING")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--why", metavar="100%%", help="why")
    assert parser.format_help().startswith("usage: x --out FILE THING [options]\n")
