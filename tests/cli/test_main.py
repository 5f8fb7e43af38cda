"""The command itself: fast help, one-line errors, exit codes."""

import errno
import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from patchtrain.cli import main as main_module
from patchtrain.cli import results
from patchtrain.cli.main import COMMANDS, main
from patchtrain.errors import PatchtrainError, UsageError


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"patchtrain {command}" in text.split("options:")[0].split("\n", 2)[2]


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from patchtrain.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'plotly', 'numpy', 'pydantic'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("heavy: []\n")


def test_importing_the_package_is_light_and_names_are_public() -> None:
    script = "import sys, patchtrain; print('torch' in sys.modules, patchtrain.patch_loss.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False patch_loss\n"


@pytest.mark.parametrize("argv", [[], ["trian"], ["train"], ["generate", "--no-such-flag"]])
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("patchtrain: error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["study", "ablatoin"], "no study 'ablatoin'; did you mean 'ablation'?"),
        (
            ["generate", "x", "--num-sample", "3"],
            "no option --num-sample; did you mean '--num-samples'?",
        ),
        (["study", "sweep", "r.yaml", "--ovr", "K=2"], "--over"),
        (["report", "x", "--zyx=1"], "no option --zyx; known: --debug, --help, --json, --out"),
        (["inspect", "x", "--format", "jsnl"], "--format cannot be 'jsnl'; did you mean 'jsonl'?"),
        (["inspect", "x", "--show", "many"], "--show: invalid int value: 'many'"),
        (["completion", "bash", "more"], "unexpected 'more' (see patchtrain completion --help)"),
        (["prepare", "x"], "--out"),
    ],
)
def test_near_misses_are_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_help_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["help"], ["help", "train"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 0
        assert " ".join(["usage: patchtrain", *words[1:]]) in capsys.readouterr().out


def test_only_the_result_is_on_stdout_for_a_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(args: Any) -> int:
        print("a library says hello")
        results.show_json({"loss": float("nan"), "losses": (1.5, float("inf")), "name": "ü"})
        return 0

    monkeypatch.setattr("patchtrain.cli.report.run", talk)
    assert main(["report", "x", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"loss": None, "losses": [1.5, None], "name": "ü"}
    assert printed.err == "a library says hello\n"
    assert main(["report", "x"]) == 0
    assert capsys.readouterr().out.startswith("a library says hello")


def test_a_warning_of_ours_is_one_line_in_the_style_of_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(args: Any) -> int:
        for file in (main_module.__file__, "/elsewhere.py"):
            text = warnings.formatwarning(UserWarning("odd\nthing"), UserWarning, file, 7)
            print(text, end="", file=sys.stderr)
        return 0

    monkeypatch.setattr("patchtrain.cli.report.run", warn)
    before = warnings.formatwarning
    assert main(["report", "x"]) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("patchtrain: warning: odd thing\n/elsewhere.py:7: UserWarning: odd")
    assert warnings.formatwarning is before


def full_disk(wrapped: bool) -> Exception:
    error = OSError(errno.ENOSPC, "No space left on device", "model.bin")
    if not wrapped:
        return error
    outer = RuntimeError("writing failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such thing"), 2, "no such thing"),
        (PatchtrainError("it broke"), 1, "it broke"),
        (full_disk(False), 1, "the disk is full while writing model.bin"),
        (full_disk(True), 1, "the disk is full while writing model.bin"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: permission denied"),
        (ValueError("odd\nthing"), 1, "ValueError: odd thing (--debug shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: Any) -> int:
        raise error

    monkeypatch.setattr("patchtrain.cli.report.run", fail)
    assert main(["report", "x"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"patchtrain: error: {message}")
    assert printed.err.count("\n") == 1
    assert main(["report", "x", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def in_a_ring() -> Exception:
    error = RuntimeError("round and round")
    error.__cause__ = error
    return error


def test_errors_that_cause_each_other_are_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> int:
        raise in_a_ring()

    monkeypatch.setattr("patchtrain.cli.report.run", fail)
    assert main(["report", "x"]) == 1
    assert "RuntimeError: round and round" in capsys.readouterr().err


@pytest.mark.parametrize(("signals", "message", "code"), [(1, "the reason", 1),
                                                          (2, "terminated", 143)])  # fmt: skip
def test_a_signal_does_not_cover_up_the_error_a_command_ends_with(
    signals: int, message: str, code: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    @contextmanager
    def cleaning_up() -> Iterator[None]:
        try:
            yield
        finally:  # here torchrun's SIGTERM arrives
            for _ in range(signals):
                signal.raise_signal(signal.SIGTERM)

    def fail(args: Any) -> int:
        with cleaning_up():
            raise PatchtrainError("the reason")

    monkeypatch.setattr("patchtrain.cli.report.run", fail)
    assert main(["report", "x"]) == code
    assert capsys.readouterr().err == f"patchtrain: error: {message}\n"


@pytest.mark.parametrize(("error", "said"), [
    (UsageError("no such key"), 0), (PatchtrainError("a broken file"), 1), (KeyboardInterrupt(), 0),
])  # fmt: skip
def test_what_all_processes_see_alike_is_said_by_the_first_of_a_machine(
    error: BaseException, said: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(args: Any) -> int:
        raise error

    monkeypatch.setattr("patchtrain.cli.report.run", fail)
    monkeypatch.setenv("LOCAL_RANK", "1")
    main(["report", "x"])
    assert capsys.readouterr().err.count("\n") == said
    monkeypatch.setenv("LOCAL_RANK", "0")
    main(["report", "x"])
    assert capsys.readouterr().err.count("\n") == 1


def test_the_commands_of_the_help_exist() -> None:
    named = {line.split()[1] for line in main_module.DOC.splitlines() if line.startswith("  patch")}
    assert named <= set(COMMANDS)


def test_help_is_quick_enough_to_ask_for() -> None:
    # Not a benchmark: three seconds would mean that something heavy was imported after all.
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "patchtrain", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - begin < 3


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m patchtrain --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("usage: patchtrain")
    assert "Traceback" not in done.stderr


def test_a_message_stays_one_line_that_a_terminal_shows_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, shown in [
        (UsageError("no file a\nb\x1b[2J\u202e"), "no file a b\\x1b[2J\\u202e"),
        (PatchtrainError("x" * 9000), "x" * 1997 + "..."),
        (MemoryError(), "there is not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "there is not enough memory"),
    ]:

        def fail(args: Any, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("patchtrain.cli.report.run", fail)
        assert main(["report", "x"]) in (1, 2)
        assert capsys.readouterr().err == f"patchtrain: error: {shown}\n"


def test_where_memory_runs_out_the_line_says_what_takes_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Any) -> int:
        torch.empty(10**15)
        raise AssertionError

    for command, todo in (
        ("train", "training.per_device_train_batch_size"),
        ("eval", "--batch-size"),
    ):
        monkeypatch.setattr(f"patchtrain.cli.{command}.run", fail)
        assert main([command, "x"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("patchtrain: error: there is not enough memory: ")
        assert todo in said
