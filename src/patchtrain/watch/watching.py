"""What ``patchtrain watch`` was pointed at: a run, or a folder of runs, in any state.

The terminal looks once a second; the page's server hands out what was seen last. The two are
different threads, so all that both touch goes through a lock.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from patchtrain.errors import UsageError
from patchtrain.watch.history import History, Point
from patchtrain.watch.state import State, Watched

MOST_POINTS = 4000  # that one answer to the page holds
_OF_A_RUN = ("run.json", "recipe.yaml", "metrics.jsonl")
_OF_A_GROUP = ("study.json", "runs", ".patchtrain-study", ".patchtrain-demo")
_FIELDS = ("event", "step", "stage", "patch_size", "tokens", "flops", "seconds", "loss")


class Watching:
    """The runs at ``path``, looked at again and again.

    Raises:
        UsageError: there is something at ``path``, and it is neither a run nor has it any.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.states: dict[str, State] = {}
        self.is_group = False
        """Whether this is a study, a comparison, or any folder of runs; known after a look."""
        self._runs: dict[str, Watched] = {}
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path} is a file; name a run's folder")
        if path.is_dir() and self._none_here():
            raise UsageError(
                f"{path} is no run folder and has none in it; name the folder that a recipe's "
                f"`out` names"
            )

    def _none_here(self) -> bool:
        """Whether something lies here that will hardly become a run."""
        visible = any(not entry.name.startswith(".") for entry in self.path.iterdir())
        return visible and not self._is_run() and not self._is_group()

    def _is_run(self) -> bool:
        return any((self.path / name).is_file() for name in _OF_A_RUN)

    def _is_group(self) -> bool:
        if self._is_run():
            return False
        marked = any((self.path / name).exists() for name in _OF_A_GROUP)
        return marked or any(self.path.glob("*/run.json"))

    def look(self) -> dict[str, State]:
        """How all runs stand now, by the names of their folders."""
        with self.lock:
            with suppress(OSError):  # of a folder that goes away, or a network that is slow
                self._find()
            self.states = {name: run.look() for name, run in self._runs.items()}
        return self.states

    def _find(self) -> None:
        """The runs that are there, or that a study is about to make."""
        self.is_group = self._is_group()
        folders = {"": self.path}
        if self.is_group:
            inside = self.path / "runs" if (self.path / "runs").is_dir() else self.path
            names = {file.stem for file in (self.path / "recipes").glob("*.yaml")}
            for entry in inside.iterdir():
                if any((entry / name).is_file() for name in _OF_A_RUN):
                    names.add(entry.name)
            folders = {name: inside / name for name in sorted(names)}
        self._runs = {
            name: self._runs.get(name) or Watched(folder) for name, folder in folders.items()
        }

    def history(self, name: str) -> History:
        """The metrics of a run; ``KeyError`` if there is none of that name."""
        return self._runs[name].history

    def of_interest(self) -> str | None:
        """The run to show where none is asked for: one that trains, or the first."""
        training = (name for name, state in self.states.items() if state.status == "running")
        return next(training, next(iter(self.states), None))

    def new_points(self, name: str | None, generation: str, after: int) -> dict[str, Any]:
        """The points of a run that a page does not have yet, for JSON.

        Args:
            name: of the run; None for the one of interest.
            generation: of the points the page has; all are sent where they are of another.
            after: how many it has.

        Raises:
            KeyError: there is no run of that name.
        """
        points: list[Point] = []
        begin, current, more = 0, "", False
        with self.lock:
            name = self.of_interest() if name is None else name
            if name is not None:
                history = self.history(name)
                current = history.generation
                begin = after if generation == current and after <= len(history.points) else 0
                points = history.points[begin : begin + MOST_POINTS]
                more = begin + len(points) < len(history.points)
        return {
            "run": name,
            "generation": current,
            "from": begin,
            "fields": _FIELDS,
            "points": [_shortened(point) for point in points],
            "more": more,
        }


def _shortened(point: Point) -> list[Any]:
    return [getattr(point, field) for field in _FIELDS]
