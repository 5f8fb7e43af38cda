"""Sweeps: a point for every choice along some axes, each against token level at equal something.

An axis is any entry of a recipe with its values: ``plan.patch_size=2,3,4``. The learning rate is
no axis like the others but a nuisance: a point is taken at its own best rate. What changes only how
patches are used (patch size, fractions, stages, optimizer at the switch, weights) leaves token
level as it is; everything else (model, batch, schedule, length) changes token level too, so that
each such choice has a token-level reference of its own.

A point that cannot be trained is kept with the reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from patchtrain.analysis.studies.equal import check_data
from patchtrain.analysis.studies.question import (
    ALIASES,
    BASELINE,
    LENGTHS,
    RATE,
    Contender,
    Question,
    equalized,
    full_path,
    measured_length,
    replaced,
    shared_recipe,
    token_level,
)
from patchtrain.errors import UsageError, one_line
from patchtrain.patch_settings import UNUSED
from patchtrain.plan import PlanSpec
from patchtrain.recipe import Recipe
from patchtrain.report.formats import exact
from patchtrain.yaml_reader import read_yaml

# Of these token level knows nothing.
_OF_PATCHES = (
    "plan.patch_size", "plan.patch_fraction", "plan.step_fraction", "plan.stages", "plan.share_of",
    "plan.hold", "plan.schedule_scope", "plan.optimizer_at_switch", "plan.slot_weights",
    *(f"plan.{setting}" for setting in UNUSED),
)  # fmt: skip
# What may lie between two whole numbers.
_NOT_WHOLE = {
    RATE,
    *(f"plan.{item.name}" for item in fields(PlanSpec) if "float" in str(item.type)),
}
_MOST_POINTS = 500
_LONGEST_NAME = 100
_RANGE = re.compile(r"([-+.\deE]+)\.\.([-+.\deE]+)")
_RATES_OF_A_RANGE = 4  # that token level is tried at, where the rate is searched in a range


@dataclass(frozen=True)
class Range:
    """An axis of a search that has no list of values: all numbers between two."""

    low: float
    high: float

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def log(self) -> bool:
        """Whether to search in the logarithm: where it goes over a factor of eight."""
        return self.low > 0 and self.high / self.low >= 8

    def to_json(self) -> list[str]:
        return [f"{exact(self.low)} to {exact(self.high)}"]


Axis = Sequence[Any] | Range


@dataclass(frozen=True)
class Sweep:
    """Axes, and how a choice along them becomes a contender."""

    bare: Question  # without contenders
    axes: Mapping[str, Axis]  # by path, without the rate
    rates: Axis  # empty: the recipe's own
    targets: dict[str, float] = field(default_factory=dict)  # FLOPs or tokens, by length

    def point(self, values: Mapping[str, Any]) -> Contender:
        """The contender of a choice; raises ``UsageError`` where it cannot be trained."""
        reference, name = _name(BASELINE, self._shared(values)), self.name_of(values)
        return self._fitted(Contender(name, "", replaced(values), reference, dict(values)))

    def reference(self, values: Mapping[str, Any]) -> Contender:
        """The token-level contender that a choice is compared with; raises as ``point``."""
        shared = self._shared(values)
        entries = {**replaced(shared), **token_level()}
        return self._fitted(Contender(_name(BASELINE, shared), "", entries, None, shared))

    def references(self) -> tuple[list[Contender], dict[str, str]]:
        """All references, and by name those that cannot be trained."""
        shared = {path: axis for path, axis in self.axes.items() if path not in _OF_PATCHES}
        for path, axis in shared.items():
            if isinstance(axis, Range):
                raise UsageError(
                    f"--over {path}: token level depends on it too, so give values, not a range"
                )
        return fitting(self.reference, _choices(shared), lambda at: _name(BASELINE, at))

    def points(self) -> tuple[list[Contender], dict[str, str]]:
        """The points of the whole grid, and by name those that cannot be trained."""
        for path, axis in {**self.axes, RATE: self.rates}.items():
            if isinstance(axis, Range):
                raise UsageError(f"--over {path}: a grid has values, not a range; or --search")
        return fitting(self.point, _choices(self.axes), self.name_of)

    def name_of(self, values: Mapping[str, Any]) -> str:
        shared = self._shared(values)
        return _name("", {**{p: v for p, v in values.items() if p not in shared}, **shared})

    def baseline_rates(self) -> tuple[float | None, ...]:
        """The rates that token level is tried at: those of the axis, or spread over its range."""
        if not isinstance(self.rates, Range):
            return tuple(self.rates) or (None,)
        low, high, last = self.rates.low, self.rates.high, _RATES_OF_A_RANGE - 1
        spread = (low * (high / low) ** (number / last) for number in range(last + 1))
        return tuple(float(f"{rate:.4g}") for rate in spread)

    def _shared(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {path: value for path, value in values.items() if path not in _OF_PATCHES}

    def _fitted(self, contender: Contender) -> Contender:
        """With its length; every point gets what token level spends at the recipe's length."""
        lengths = {path: contender.values[path] for path in LENGTHS if path in contender.values}
        key = json.dumps(lengths, sort_keys=True)
        if key not in self.targets:
            entries = {**replaced(lengths), **token_level()}
            self.targets[key] = measured_length(self.bare, entries)
        found = equalized(self.bare, contender, self.targets[key])
        check_data(self.bare.study([replace(self.bare.variant(found, None), notes={})]))
        return found


def swept(
    recipe: Recipe,
    over: Sequence[str],
    *,
    held_equal: str = "compute",
    seeds: Sequence[int] = (0,),
    tuning: int = 1,
    confirm: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Sweep:
    """The sweep of ``study sweep``, without its points.

    Args:
        recipe: what the axes do not say.
        over: ``PATH=values`` or ``PATH=low..high``, several.
        held_equal: ``"compute"`` or ``"data"``.
        seeds: those that try every point, and others that repeat the best.
        tuning: how many of them, from the first on, try every point.
        confirm: how many; None: all.

    Raises:
        UsageError: an axis is wrong.
    """
    axes: dict[str, Axis] = {}
    for words in over:
        path, axis = axis_from_words(words)
        if path in axes:
            raise UsageError(f"--over {path} is there twice")
        axes[path] = axis
    rates = axes.pop(RATE, ())
    if isinstance(rates, Range) and rates.low <= 0:
        raise UsageError("a learning rate is above 0, and so is its range")
    if not axes:
        raise UsageError("a sweep goes over something, such as --over plan.patch_size=2,3,4")
    if sum(path in axes for path in LENGTHS) > 1:
        raise UsageError("a run has one length: sweep over one of steps, tokens and epochs")
    listed = () if isinstance(rates, Range) else tuple(_rate(value) for value in rates)
    shown: dict[str, Sequence[Any]] = {
        path: axis.to_json() if isinstance(axis, Range) else list(axis)
        for path, axis in axes.items()
    }
    names = ", ".join(path.rpartition(".")[2] for path in axes)
    bare = Question(
        "sweep", f"Sweep over {names}", shared_recipe(recipe), (), held_equal, tuple(seeds),
        rates=tuple(sorted(listed)), tuning=tuning, confirm=confirm, axes=shown, about=about or {},
    )  # fmt: skip
    return Sweep(bare, axes, rates if isinstance(rates, Range) else bare.rates)


def grid(sweep: Sweep) -> Question:
    """The question of all points of a grid with their references.

    Raises:
        UsageError: no point, or no reference, can be trained; too many points.
    """
    count = 1
    for axis in sweep.axes.values():
        count *= 1 if isinstance(axis, Range) else len(axis)
    if count > _MOST_POINTS:
        raise UsageError(
            f"a grid of {count:,} points is more than {_MOST_POINTS}; --search bayes --trials N"
        )
    return _asked(sweep, *sweep.points())


def searched(sweep: Sweep) -> Question:
    """The question of a search: for now only its references; the points come as it goes."""
    rates = [rate for rate in sweep.baseline_rates() if rate is not None]
    return replace(_asked(sweep, [], {}), rates=tuple(rates))


def _asked(sweep: Sweep, points: Sequence[Contender], unfit: Mapping[str, str]) -> Question:
    references, without = sweep.references()
    there = {item.name for item in references}
    lost = {
        item.name: f"its reference {item.reference} cannot be trained"
        for item in points
        if item.reference not in there
    }
    left = [item for item in points if item.name not in lost]
    if not references or (unfit and not left):
        reason = next(iter({**without, **unfit, **lost}.values()))
        raise UsageError(f"no point of the sweep can be trained: {reason}")
    return replace(sweep.bare, contenders=(*references, *left), unfit={**without, **unfit, **lost})


def fitting(
    make: Callable[[Mapping[str, Any]], Contender],
    choices: Iterable[Mapping[str, Any]],
    name: Callable[[Mapping[str, Any]], str],
) -> tuple[list[Contender], dict[str, str]]:
    """What ``make`` makes of each choice, and the reason by name where it cannot."""
    found: dict[str, Contender] = {}
    unfit: dict[str, str] = {}
    for values in choices:
        try:
            contender = make(values)
        except UsageError as error:
            at = name(values)
            unfit[at] = one_line(error, 300).removeprefix(f"arm {at}: ")
        else:
            found[contender.name] = contender
    return list(found.values()), unfit


def axis_from_words(words: str) -> tuple[str, Axis]:
    """``K=2,3,4`` or ``rate=1e-3..1e-2`` as a path and its values."""
    key, equals, text = words.partition("=")
    if not equals or not text.strip():
        raise UsageError(f"--over {words} is not PATH=values, such as plan.patch_size=2,3,4")
    path = full_path(key.strip())
    if found := _RANGE.fullmatch(text.strip()):
        low, high = (_number(end, words) for end in found.groups())
        if not low < high:
            raise UsageError(f"--over {words}: the range goes from less to more")
        if path in _NOT_WHOLE:  # r=0..1 means what lies between
            low, high = float(low), float(high)
        return path, Range(low, high)
    values = read_yaml(f"[{text}]", f"--over {key}")
    values = [_rate(value) for value in values] if path == RATE else values
    shown = [json.dumps(value, default=str) for value in values]
    if len(set(shown)) < len(shown):
        raise UsageError(f"--over {words}: a value is there twice")
    return path, values


def _number(text: str, words: str) -> float:
    try:
        number = int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--over {words}: {text} is no number")
    return number


def _rate(value: Any) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if not 0 < rate < 1e6:
        raise UsageError(f"a learning rate is a number above 0, not {one_line(repr(value), 40)}")
    return rate


def _choices(axes: Mapping[str, Axis]) -> list[dict[str, Any]]:
    lists = [axis for axis in axes.values() if not isinstance(axis, Range)]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def _name(first: str, values: Mapping[str, Any]) -> str:
    """A name for folders and tables: ``K2-r0.3``, ``token-hidden_size64``."""
    short = {path: alias for alias, path in ALIASES.items()}
    parts = [first] if first else []
    for path, value in values.items():
        name = short.get(path, path.rpartition(".")[2])
        shown = exact(value) if isinstance(value, float) else json.dumps(value, default=str)
        parts.append(name + re.sub(r"[^\w.-]+", "_", shown).strip("_"))
    whole = "-".join(parts)
    if len(whole) > _LONGEST_NAME:
        return f"{whole[:_LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return whole
