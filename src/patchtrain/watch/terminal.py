"""The view in the terminal: one run with its curves, or several in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from patchtrain.report.formats import averaged, count, duration, percent, scale
from patchtrain.watch.history import History, Point
from patchtrain.watch.plot import Curve, plot
from patchtrain.watch.state import State
from patchtrain.watch.words import COLUMNS, cells, facts, headline, summary

_STYLES = {
    "waiting": "dim", "starting": "cyan", "running": "green", "finishing": "green",
    "stalled": "bold yellow", "stopped": "yellow", "failed": "bold red", "gone": "bold red",
    "finished": "bold green",
}  # fmt: skip
# By kind of loss, which must not be mixed up.
_PATCH, _TOKEN, _VALIDATION = "magenta", "blue", "bold yellow"
_POINTS = 400  # of a stage; longer ones are averaged over neighbours
# Facts that a low terminal does without, so that there is room for the curves.
_LEAST_INTEREST = ("compute", "taken up", "process", "last line", "checkpoint", "learning rate",
                   "tokens read", "training time")  # fmt: skip
_LEAST_PLOT, _MOST_PLOT = 6, 20


@dataclass(frozen=True)
class Over:
    """What losses are drawn over."""

    counter: str
    word: str

    def label(self, largest: float) -> str:
        """``compute: 3.2 TFLOP``, the largest value with its unit."""
        if self.counter == "seconds":
            return f"{self.word}: {duration(largest)}"
        if self.counter != "flops":
            return f"{self.word}: {count(largest)}"
        size, letter = scale(largest)
        return f"{self.word}: {largest / size:.3g} {letter}FLOP"


AXES = {
    "compute": Over("flops", "compute"),
    "steps": Over("step", "steps"),
    "tokens": Over("tokens", "tokens read"),
    "time": Over("seconds", "training time"),
}


def view(
    state: State,
    history: History,
    console: Console,
    over: str,
    notes: Sequence[str] = (),
    height: int | None = None,
) -> Group:
    """One run, in ``height`` lines if it is given; ``notes`` stand below.

    The curves get the lines that the rest leaves, or none if they are too few.
    """
    rows, columns = facts(state), 2 if console.width >= 110 else 1
    above: list[RenderableType] = [Text(headline(state), style=_STYLES[state.status])]
    above += [Text(f"! {problem}", style="yellow") for problem in state.problems]
    if state.stages:
        above.append(_bar(state, console))
    below = [Text(note, style="dim") for note in notes]
    lines = _MOST_PLOT
    if height is not None:
        drop = list(_LEAST_INTEREST) if history.points else []
        while True:
            whole = Group(*above, _table(rows, columns), *below)
            lines = min(height - len(console.render_lines(whole)) - 2, _MOST_PLOT)
            if lines >= _LEAST_PLOT or not drop:
                break
            label = drop.pop(0)
            rows = [row for row in rows if row[0] != label]
    above.append(_table(rows, columns))
    if not history.points or lines < _LEAST_PLOT:
        return Group(*above, *below)
    drawing = _plot(history, console, over, lines)
    return Group(*above, Text(), _legend(history), drawing, *below)


def table(states: Sequence[State], most: int, notes: Sequence[str] = ()) -> Group:
    """Several runs, a line each; of more than ``most`` those that are neither over nor to come."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(COLUMNS):
        shown.add_column(name, justify="left" if index < 2 else "right")
    chosen = list(states)
    if len(chosen) > most:
        chosen.sort(key=lambda state: state.status in ("finished", "waiting"))
        chosen = chosen[:most]
        notes = [f"and {len(states) - most} more", *notes]
    for state in chosen:
        first, status, *rest = (Text(cell) for cell in cells(state))
        status.stylize(_STYLES[state.status])
        shown.add_row(first, status, *rest)
    problems = [f"! {state.name}: {problem}" for state in chosen for problem in state.problems]
    return Group(
        Text(summary(states)),
        shown,
        *(Text(problem, style="yellow") for problem in problems),
        *(Text(note, style="dim") for note in notes),
    )


def _table(rows: Sequence[tuple[str, str]], columns: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    half = -(-len(rows) // columns)
    for _ in range(columns):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
    for index in range(half):
        cells: list[RenderableType] = []
        for row in rows[index::half]:
            cells += [Text(row[0]), Text(row[1])]
        grid.add_row(*cells)
    return grid


def _bar(state: State, console: Console) -> Text:
    """How much of the compute is done, with the switches where they lie."""
    width = min(console.width, 100) - 6
    full, empty, at = ("#", ".", "|") if plain(console) else ("█", "░", "┃")
    done = round(state.share * width)
    chars = [full] * done + [empty] * (width - done)
    for place in state.switch_shares if state.total_positions else ():
        chars[min(round(place * width), width - 1)] = at
    text = Text(no_wrap=True)
    for index, char in enumerate(chars):
        style = "bold" if char == at else "green" if index < done else "dim"
        text.append(char, style=style)
    text.append(f" {percent(state.share)}")
    return text


def _legend(history: History) -> Text:
    text = Text()
    stages = {stage: rows[-1].patch_size for stage, rows in history.train.items()}
    if any(size > 1 for size in stages.values()):
        text.append("patch loss   ", style=_PATCH)
    if any(size == 1 for size in stages.values()):
        text.append("token loss   ", style=_TOKEN)
    if history.evals:
        text.append("validation", style=_VALIDATION)
    return text


def _plot(history: History, console: Console, over: str, height: int) -> Text:
    axis = AXES[over]

    def points(rows: Sequence[Point]) -> list[tuple[float, float]]:
        return [
            (float(getattr(row, axis.counter)), row.loss) for row in rows if row.loss is not None
        ]

    curves = [
        Curve(averaged(points(rows), _POINTS), _PATCH if rows[-1].patch_size > 1 else _TOKEN)
        for rows in (history.train[stage] for stage in sorted(history.train))
    ]
    curves.append(Curve(points(history.evals), _VALIDATION))
    largest = max((x for curve in curves for x, _ in curve.points), default=0.0)
    marks = [float(getattr(point, axis.counter)) for point in history.switches.values()]
    return plot(curves, min(console.width, 120), height, axis.label(largest), marks, plain(console))


def plain(console: Console) -> bool:
    """Whether the terminal shows ASCII alone."""
    return "utf" not in console.encoding.lower()
