"""``patchtrain watch`` as a person calls it: once, on a terminal, in a log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patchtrain.cli import watch
from patchtrain.cli.main import main
from tests.report.fake_runs import write_run
from tests.watch.pretend import Pretended

BRAILLE = {chr(0x2800 + bits) for bits in range(1, 256)}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes as soon as there is nothing more to show."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)


def test_once_shows_curves_and_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Pretended(eval_every=20).write(tmp_path / "run", 150)
    labels = {
        "compute": "compute: 9.6 MFLOP",
        "steps": "steps: 150",
        "tokens": "tokens read: 28,800",
        "time": "training time: 1 min 15 s",
    }
    for over, label in labels.items():
        assert main(["watch", str(run.path), "--once", "--over", over]) == 0
        out = capsys.readouterr().out
        assert label in out
        assert BRAILLE & set(out)
        assert "to tokens at step 100: done" in out
        assert "150 of 300, 50% of the compute" in out


def test_once_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Pretended().write(tmp_path / "runs" / "a", 150, "finished")
    assert main(["watch", str(run.path), "--once", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["name"], one["status"], one["step"]) == ("a", "finished", 150)
    Pretended().write(tmp_path / "runs" / "b", 50)
    assert main(["watch", str(tmp_path), "--once", "--json"]) == 0
    assert [state["name"] for state in json.loads(capsys.readouterr().out)["runs"]] == ["a", "b"]
    assert main(["watch", str(tmp_path / "none"), "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "waiting"


def test_several_runs_are_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipes").mkdir()
    for name in ("k4-seed-0", "k4-seed-1", "token-seed-0"):
        (tmp_path / "recipes" / f"{name}.yaml").touch()
    write_run(tmp_path / "runs" / "k4-seed-0", ((4, 100), (1, 100)))
    write_run(tmp_path / "runs" / "k4-seed-1", ((4, 100), (1, 100)), finished=False)
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "3 runs: 1 waiting, 1 finishing, 1 finished" in out
    rows = [line.split() for line in out.splitlines() if "seed" in line]
    assert [row[:3] for row in rows[:2]] == [
        ["k4-seed-0", "finished", "100%"], ["k4-seed-1", "finishing", "100%"]
    ]  # fmt: skip
    assert rows[2] == ["token-seed-0", "waiting"]


def test_a_log_has_lines_and_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moments: list[tuple[int, str]] = [(50, "running"), (150, "running"), (300, "finished")]

    def next_moment(seconds: float) -> None:
        Pretended().write(tmp_path / "run", *moments.pop(0))

    monkeypatch.setattr(watch.time, "sleep", next_moment)
    # The last line was just written, whatever the time is.
    monkeypatch.setattr("patchtrain.watch.state.time.time", lambda: 1_700_000_000.0)
    assert main(["watch", str(tmp_path / "run"), "--no-serve"]) == 0
    waiting, patches, tokens, finished = capsys.readouterr().out.splitlines()
    assert waiting == f"run has not started yet: there is no run at {tmp_path / 'run'}"
    assert patches.startswith(
        "run: step 50 of 300, patches of 4: loss 8.500, 512 tokens/s, 2 min 05"
    )
    assert tokens.startswith(
        "run: step 150 of 300, tokens: loss 7.500, 128 tokens/s, 1 min 15 s left"
    )
    assert finished == "run is finished"
    assert moments == []


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_ends_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Pretended().write(tmp_path / "run", 50)
    assert main(["watch", str(run.path), "--port", "0"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("page: http://127.0.0.1:")
    assert err == "stopped watching\n"


@pytest.mark.usefixtures("interrupted")
def test_open_opens_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = Pretended().write(tmp_path / "run", 300, "finished")
    assert main(["watch", str(run.path), "--port", "0", "--open"]) == 0  # goes on with the page
    assert len(opened) == 1
    assert opened[0].startswith("http://127.0.0.1:")


def test_bad_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other" / "things").mkdir(parents=True)
    for words, message in (
        ([tmp_path / "file"], "is a file; name a run's folder"),
        ([tmp_path / "other"], "is no run folder and has none in it"),
        ([tmp_path / "run", "--json"], "give it with --once"),
        ([tmp_path / "run", "--no-serve", "--open"], "--no-serve shows no page"),
        ([tmp_path / "run", "--once", "--port", "1"], "--once shows no page"),
        ([tmp_path / "run", "--port", "99999"], "--port must be from 0 to 65535"),
    ):
        assert main(["watch", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    run = Pretended().write(tmp_path / "run", 300, "finished")
    (run.path / "checkpoint-40").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run.path.chmod(0o555)
    assert main(["watch", str(run.path), "--once"]) == 0
    assert main(["watch", str(run.path), "--no-serve"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_watching_needs_no_torch(tmp_path: Path) -> None:
    """It may run beside a training that needs all memory, and begins at once."""
    run = Pretended().write(tmp_path / "run", 50)
    script = (
        "import sys\n"
        "from patchtrain.cli.main import main\n"
        f"main(['watch', {str(run.path)!r}, '--once', '--json'])\n"
        "import patchtrain.watch.server\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'plotly'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("[]\n"), done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("size", [(40, 120), (24, 80), (10, 40)])
def test_the_view_on_a_terminal(tmp_path: Path, size: tuple[int, int]) -> None:
    import fcntl
    import pty
    import struct
    import termios

    run = Pretended(eval_every=20).write(tmp_path / "run", 300, "finished")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    for name in ("COLUMNS", "LINES"):  # would stand for the terminal's own size
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "patchtrain", "watch", str(run.path), "--no-serve"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(60) == 0
    text = shown.decode()
    assert "run is finished" in text
    assert "█" in text
    assert bool(BRAILLE & set(text)) is (size[0] >= 24)
    assert text.endswith("\x1b[?25h")  # the cursor is back
