"""``patchtrain prepare`` as a user calls it: results, one-line errors, and being killed."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from patchtrain.cli import prepare as command
from patchtrain.cli.main import main
from patchtrain.data.documents import added_share
from patchtrain.data.store import TokenStore
from patchtrain.errors import UsageError
from patchtrain.plan import PlanSpec

SMALL = Path(__file__).parents[2] / "recipes" / "small.yaml"
# Only this command is loaded: the test does not depend on the others.
_CALL = """
import sys
from patchtrain.cli import main
main.COMMANDS = ("prepare",)
sys.exit(main.main())
"""


def call(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", _CALL, "prepare", *map(str, arguments)],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(f"line {i} of a text\n" for i in range(5000)))
    return file


def test_it_prints_what_came_out(text_file, capsys):
    out = text_file.parent / "store"
    assert run(text_file, "--out", out, "--train-tokenizer", "byte") == 0
    shown = capsys.readouterr()
    store = TokenStore.open(out)
    rows = {line.split()[0]: line.split() for line in shown.out.splitlines() if line}
    assert rows["train"][1:3] == [f"{store.train.documents:,}", f"{len(store.train.tokens):,}"]
    assert rows["validation"][3] == f"{store.validation.utf8_bytes:,}"
    assert shown.out.endswith(f"small.yaml store={out} plan.steps=null plan.epochs=8\n")
    assert "1 long documents were cut" in shown.out
    assert "tokenising" in shown.err
    share = added_share(store.train.offsets, 4)
    assert "kept separate, padding and start tokens would be" in shown.out
    assert f"{share:.1%} at K = 4" in shown.out


def test_what_the_small_recipe_needs_is_what_the_next_command_goes_by(capsys):
    spec = PlanSpec.from_dict(yaml.safe_load(SMALL.read_text())["plan"])
    plan = spec.resolve(device_sequences=16)
    assert pytest.approx(command.SMALL_NEEDS, rel=1e-3) == plan.total_tokens / spec.max_epochs
    assert command.SMALL_NEEDS * spec.max_epochs >= plan.total_tokens
    for tokens, end in ((command.SMALL_NEEDS, "S"), (command.SMALL_NEEDS - 1, "plan.epochs=8")):
        command.print_next(SimpleNamespace(train=SimpleNamespace(tokens=range(tokens))), "S")
        assert capsys.readouterr().out.splitlines()[-1].endswith(end)


def test_the_default_tokenizer_is_announced(text_file, capsys):
    run(text_file, "--out", text_file.parent / "store")
    assert (
        "training a bpe tokenizer with 8,192 entries (no --tokenizer given)"
        in capsys.readouterr().err
    )


def test_separator_escapes(text_file):
    out = text_file.parent / "store"
    run(text_file, "--out", out, "--train-tokenizer", "byte", "--document-separator", r"\n")
    store = TokenStore.open(out)
    assert store.train.documents + store.validation.documents == 5000


def test_errors_are_usage_errors(text_file, tmp_path):
    with pytest.raises(UsageError, match="too small"):
        run(text_file, "--out", tmp_path / "s", "--vocab-size", "100")
    with pytest.raises(UsageError, match="no file or folder"):
        run(tmp_path / "nothing.txt", "--out", tmp_path / "s")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing.txt", "--out", "s"], 2, "no file or folder nothing.txt"),
        (["bad.jsonl", "--out", "s"], 1, "bad.jsonl: line 2 is not JSON"),
    ],
)
def test_one_line_and_an_exit_code(tmp_path, arguments, code, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nnope\n')
    process = call(*arguments, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_store(tmp_path, number):
    # An endless corpus from a pipe: the run is surely in the middle of writing when it is killed.
    reading, writing = os.pipe()
    process = call(
        "-", "--format", "jsonl", "--out", tmp_path / "store", "--tokenizer", _tokenizer(tmp_path),
        stdin=reading,
    )  # fmt: skip
    os.close(reading)
    line = b'{"text": "' + b"some words of a document " * 400 + b'"}\n'
    deadline = time.monotonic() + 60
    try:
        while not _written(tmp_path):
            assert time.monotonic() < deadline
            os.write(writing, line)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(writing)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(number, -number)
    with pytest.raises(UsageError, match="no token store"):
        TokenStore.open(tmp_path / "store")
    left = [path for path in tmp_path.iterdir() if path.name != "tokenizer"]
    if number == signal.SIGKILL:
        assert left, "nothing can clean up after SIGKILL; what is left says that it is partial"
        assert all(".partial-" in path.name for path in left)
        with pytest.raises(UsageError, match=r"has no store\.json"):
            TokenStore.open(left[0])
    else:
        assert left == []
        assert "Traceback" not in err


def _tokenizer(folder):
    from patchtrain.data.tokenizer import train

    train("bpe", ["some words of a document"] * 9, 290).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def _written(folder):
    return any(file.stat().st_size for file in folder.glob(".*partial*/train.tokens.bin"))


def test_names_that_are_no_utf8(tmp_path, capsys):
    """Bytes of any kind can name a file on many systems."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    (folder / "b\udcffok.txt").write_text("one\ntwo\n" * 50)
    (folder / "x.\udcff").write_text("left out")
    argv = ["prepare", str(folder), "--validation-fraction", "0", "--train-tokenizer", "byte"]
    assert main([*argv, "--out", str(tmp_path / "store")]) == 0
    assert "left out 1 files of unknown format (.\\udcff)" in capsys.readouterr().err
    store = TokenStore.open(tmp_path / "store")
    assert store.meta["sources"][0]["source"] == str(folder)
    assert main([*argv, "--out", str(folder / "store")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("patchtrain: error: ")
    assert "caf\\udce9/store is not UTF-8" in error


def test_a_failure_takes_the_folders_it_made_along(tmp_path):
    (tmp_path / "a.jsonl").write_text("{oops\n")
    out = tmp_path / "new" / "newer" / "store"
    assert main(["prepare", str(tmp_path / "a.jsonl"), "--out", str(out)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
