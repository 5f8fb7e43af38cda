"""The terminal's view fits its terminal, whatever the run is doing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from patchtrain.watch.state import Watched
from patchtrain.watch.terminal import table, view
from tests.watch.pretend import STARTED, Pretended

THREE = Pretended(((8, 60, 192, 0.9), (2, 60, 128, 0.6), (1, 180, 64, 0.3)), eval_every=20)


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n").split("\n")


def terminal(height: int, width: int) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, _environ={})


@pytest.mark.parametrize("size", [(24, 80), (30, 60), (40, 120), (60, 200)])
@pytest.mark.parametrize("steps", [0, 1, 30, 100, 300])
@pytest.mark.parametrize("over", ["compute", "steps", "tokens", "time"])
def test_a_run_fits(tmp_path: Path, size: tuple[int, int], steps: int, over: str) -> None:
    watched = Watched(THREE.write(tmp_path / "run", steps).path)
    console = terminal(*size)
    state = watched.look(STARTED + 500)
    console.print(view(state, watched.history, console, over, ["page: http://x/"], size[0]))
    lines = shown(console)
    assert len(lines) <= size[0]
    assert all(len(line) <= size[1] for line in lines)
    assert lines[-1].startswith("page: ")
    drawn = any(0x2800 < ord(char) < 0x2900 for line in lines for char in line)
    assert drawn is (steps > 0)


def test_both_losses_and_the_switches_are_drawn_in_their_colours(tmp_path: Path) -> None:
    watched = Watched(THREE.write(tmp_path / "run", 300).path)
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard",
                      _environ={})  # fmt: skip
    console.print(view(watched.look(), watched.history, console, "compute"))
    text = "\n".join(shown(console))
    for colour in ("35", "34", "1;33"):  # patch loss, token loss, validation
        assert f"\x1b[{colour}m" in text
    assert text.count("┃") == 2  # of the bar


def test_more_runs_than_lines(tmp_path: Path) -> None:
    states = []
    for number in range(30):
        status = "running" if number == 17 else "finished"
        run = Pretended().write(tmp_path / f"run-{number}", 50, status)
        states.append(Watched(run.path).look(STARTED + 25))
    console = terminal(24, 100)
    console.print(table(states, 10, ["Ctrl-C ends the watching"]))
    text = "\n".join(shown(console))
    assert "30 runs: 1 running, 29 finished" in text
    assert "run-17" in text
    assert "and 20 more" in text
    assert len(shown(console)) <= 24
