"""What a comparison asks: contenders over seeds, each at the best of the same learning rates.

A contender is the recipe with entries replaced (``plan.patch_size``), made as long as costs what
the baseline costs. ``compare`` names a few, a sweep makes them from axes. A *variant* is one
contender at one learning rate; it is an arm of a study, so that its runs are trained, resumed and
counted like those of any study.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchtrain.analysis.studies.equal import check_data, held_at, measured, plan_of
from patchtrain.analysis.studies.study import HELD, Arm, Equality, Study
from patchtrain.errors import UsageError, nearest, one_line
from patchtrain.patch_settings import used
from patchtrain.plan import PlanSpec
from patchtrain.planning import Planned
from patchtrain.presets import DECIDED, PRESETS
from patchtrain.recipe import Recipe
from patchtrain.report.formats import exact
from patchtrain.yaml_reader import read_yaml

BASELINE = "token"
RATE = "training.learning_rate"
BUDGETS = (0.4, 0.5, 0.63, 0.8, 1.0, 1.26)
ALIASES = {
    "K": "plan.patch_size",
    "r": "plan.step_fraction",
    "lambda": "plan.patch_fraction",
    "rate": RATE,
}
LENGTHS = ("plan.steps", "plan.tokens", "plan.epochs")
_STAGES = ("plan.patch_fraction", "plan.step_fraction", "plan.stages")
_PLAN_KEYS = tuple(PlanSpec.__dataclass_fields__)
_AT_SWITCH = {
    "carry": "optimizer carried",
    "reset": "optimizer reset",
    "second": "optimizer's second moments carried",
}


@dataclass(frozen=True)
class Contender:
    """One way to train, whatever its learning rate."""

    name: str
    words: str
    recipe: Mapping[str, Any]  # entries of the recipe to replace, by path
    reference: str | None = None  # the token-level contender that it is compared with
    values: Mapping[str, Any] = field(default_factory=dict)  # of a sweep's axes, by path
    equality: Equality | None = None  # once its steps are set


@dataclass(frozen=True)
class Question:
    """What is to be compared."""

    name: str  # compare or sweep
    title: str
    recipe: Mapping[str, Any]  # values of a Recipe, without seed and out
    contenders: tuple[Contender, ...]
    held_equal: str  # of HELD
    seeds: tuple[int, ...]
    rates: tuple[float, ...] = ()  # tried for each contender; none: the recipe's own
    tuning: int = 1  # how many of the seeds, from the first on, choose the learning rates
    budgets: tuple[float, ...] = ()  # of the baseline, as shares of its compute
    budget_rate: float | None = None  # of these runs; None: the baseline's best at full length
    confirm: int | None = None  # the best contenders that get the other seeds; None: all
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)  # contenders that cannot be trained
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.held_equal not in HELD:
            raise UsageError(f"--equal is one of {', '.join(HELD)}, not {self.held_equal}")
        for option, values in (("--rates", self.rates), ("--baseline-budgets", self.budgets)):
            if any(not 0 < value < 1e6 for value in values):
                raise UsageError(f"{option} are numbers above 0 and below a million")
            if len(set(values)) < len(values):
                raise UsageError(f"{option}: a value is there twice")
        if self.budgets == (1.0,):
            raise UsageError(
                "--baseline-budgets 1 is trained anyway, and one point makes no curve: give other "
                "shares too, such as 0.5, or no numbers"
            )
        if self.budget_rate is not None and not 0 < self.budget_rate < 1e6:
            raise UsageError("--baseline-rate is a number above 0 and below a million")
        if not 1 <= self.tuning <= len(self.seeds):
            raise UsageError(
                f"--tuning-seeds is at least 1 and at most the number of seeds, {len(self.seeds)}"
            )

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds that choose the learning rates."""
        return self.seeds[: self.tuning]

    def contender(self, name: str) -> Contender:
        return next(item for item in self.contenders if item.name == name)

    def variant(self, contender: Contender, rate: float | None, budget: float = 1.0) -> Arm:
        """A contender at a learning rate, or None at the recipe's own; a share of its length."""
        name, words, recipe = contender.name, contender.words, dict(contender.recipe)
        notes = {"contender": contender.name, "learning_rate": rate, "budget": budget}
        if rate is not None:
            name, words = f"{name}-rate-{exact(rate)}", f"{words}; learning rate {exact(rate)}"
            recipe[RATE] = rate
        if budget != 1.0:
            shown = exact(budget)
            name, words = f"{name}-budget-{shown}", f"{words}; {shown} of the compute"
        return Arm(name, words, recipe, notes=notes)

    def budget_rates(self, tried: Iterable[float | None]) -> list[float | None]:
        """What the baseline's other budgets may have of the rates that may be its best."""
        return [*tried] if self.budget_rate is None else [self.budget_rate]

    def variants(self) -> list[Arm]:
        """Every contender at every rate."""
        return [
            self.variant(item, rate) for item in self.contenders for rate in self.rates or (None,)
        ]

    def at_budget(self, contender: Contender, rate: float | None, budget: float) -> Arm:
        """The variant of a contender that has a share of its compute (or data)."""
        arm = self.variant(contender, rate, budget)
        if budget == 1.0 or contender.equality is None:
            return arm
        study = held_at(self.study([arm]), budget * contender.equality.actual, self.held_equal)
        (found,), equality = study.arms, study.equality[arm.name]
        return replace(found, notes={**found.notes, "equality": [equality.target, equality.actual]})

    def study(self, arms: Sequence[Arm]) -> Study:
        """The study that trains ``arms``."""
        equality = {}
        for arm in arms:
            if "equality" in arm.notes:
                equality[arm.name] = Equality(*arm.notes["equality"])
            elif (name := arm.notes.get("contender")) and (own := self.contender(name).equality):
                equality[arm.name] = own
        return Study(
            self.name, self.title, self.recipe, tuple(arms), self.seeds, self.held_equal,
            self.about, equality,
        )  # fmt: skip


def shared_recipe(recipe: Recipe) -> dict[str, Any]:
    """What all contenders have of a recipe: all but its seed and place."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    kept: dict[str, Any] = {
        name: values[name] for name in ("store", "model", "training") if name in values
    }
    return {**kept, "plan": {k: v for k, v in recipe.plan.items() if v is not None}}


def full_path(key: str) -> str:
    """``K`` and ``patch_size`` as ``plan.patch_size``; a path as it is.

    Raises:
        UsageError: it is none, with the nearest.
    """
    if key in ALIASES:
        return ALIASES[key]
    if key in _PLAN_KEYS:
        return f"plan.{key}"
    section, _, rest = key.partition(".")
    if rest and section in ("plan", "model", "training", "store"):
        if section == "plan" and rest not in _PLAN_KEYS:
            raise UsageError(f"plan: no key '{rest}'{nearest(rest, list(_PLAN_KEYS))}")
        return key
    if key == "store":
        return key
    hint = nearest(key, [*_PLAN_KEYS, *ALIASES])
    raise UsageError(f"'{key}' is no entry of a recipe, such as plan.patch_size{hint}")


def replaced(entries: Mapping[str, Any]) -> dict[str, Any]:
    """``entries`` with those of a recipe taken out that they stand for.

    A plan has its stages from one of ``patch_fraction``, ``step_fraction`` and ``stages``, and its
    length from one of ``steps``, ``tokens`` and ``epochs``.
    """
    found = dict(entries)
    for group in (_STAGES, LENGTHS):
        if any(entries.get(path) is not None for path in group):
            for path in group:
                found.setdefault(path, None)
    if "plan.patch_size" in entries:
        found.setdefault("plan.stages", None)
    return found


def token_level() -> dict[str, Any]:
    """The entries that make any recipe's plan token level throughout."""
    return {"plan.patch_fraction": 0, "plan.step_fraction": None, "plan.stages": None,
            "plan.patch_size": 1}  # fmt: skip


def preset(name: str, patch_size: int | None) -> dict[str, Any]:
    """The entries that make a recipe's plan a preset's, with what that preset decides.

    ``patch_size``: K where the preset does not take it from the model's size; None: its own.
    """
    if "patch_size" not in PRESETS[name]:
        patch_size = None
    decided = {f"plan.{key}": None for key in DECIDED}
    stages = dict.fromkeys(_STAGES, None)
    return {"plan.preset": name, **decided, "plan.patch_size": patch_size, **stages}


def from_words(words: str) -> tuple[str, dict[str, Any]]:
    """``mine:plan.patch_size=2,plan.step_fraction=0.3`` as a name and entries.

    A comma inside brackets separates nothing: ``steps:plan.stages=[[4,0.2],[1,0.8]]``.
    """
    name, colon, text = words.partition(":")
    entries = {}
    for pair in _outer_commas(text):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"arm '{words}': '{pair}' is not key=value, such as patch_size=2")
        path = full_path(key.strip())
        if path in entries:
            raise UsageError(f"arm '{words}': {path} is there twice")
        entries[path] = read_yaml(value, f"arm '{name}'")
    if not colon or not entries or not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"'{words}' is no arm: name token, recipe, {', '.join(PRESETS)}, or give one of your "
            f"own, such as mine:plan.patch_size=2,plan.step_fraction=0.3"
        )
    return name, replaced(entries)


def compared(
    recipe: Recipe,
    arms: Sequence[str],
    *,
    held_equal: str = "compute",
    seeds: Sequence[int] = (0, 1, 2),
    rates: Sequence[float] = (),
    tuning: int = 1,
    budgets: Sequence[float] = (),
    budget_rate: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> Question:
    """The question of ``patchtrain compare``.

    Args:
        recipe: what all arms share, and the length of the baseline.
        arms: names or ``NAME:entries``; empty for token, recipe and the presets, of which one
            that is the same as another, or does not fit the recipe, is left out.
        held_equal: ``"compute"`` or ``"data"``.
        seeds: of weights and data order; runs with the same seed are paired.
        rates: peak learning rates that every arm is tried at.
        tuning: how many of the seeds, from the first on, choose the learning rate.
        budgets: shares of its compute that the baseline is trained at, for the comparison at equal
            loss.
        budget_rate: of these runs, but for the full length; None: the best there.

    Raises:
        UsageError: an arm is wrong, or its store too small.
    """
    shared = shared_recipe(recipe)
    bare = Question("compare", "Ways to train, compared", shared, (), held_equal, tuple(seeds))
    patch_size = _patch_size(bare)
    known: dict[str, dict[str, Any]] = {
        BASELINE: token_level(),
        "recipe": {},
        **{name: preset(name, patch_size) for name in PRESETS},
    }
    asked: dict[str, dict[str, Any]] = {BASELINE: known[BASELINE]}
    for word in arms or known:
        name, entries = (word, known[word]) if word in known else from_words(word)
        if name in known and word not in known:
            raise UsageError(f"arm '{word}': '{name}' is an arm already; give yours another name")
        if name in asked and name != BASELINE:
            raise UsageError(f"arm '{name}' is there twice")
        if rates and RATE in entries:
            raise UsageError(f"arm '{name}' has a learning rate, and --rates tries others on it")
        if any(entries.get(path) is not None for path in LENGTHS):
            raise UsageError(
                f"arm '{name}': its length is set so that it has as much {held_equal} as token "
                f"level; leave {', '.join(path[5:] for path in LENGTHS)} out of it"
            )
        asked[name] = entries
    target = measured_length(bare, asked[BASELINE])
    found: list[Contender] = []
    left_out: dict[str, str] = {}
    for name, entries in asked.items():
        reference = None if name == BASELINE else BASELINE
        try:
            contender = equalized(bare, Contender(name, "", entries, reference), target)
            check_data(bare.study([Arm(name, "", contender.recipe)]))
        except UsageError as error:
            if arms or name not in PRESETS:
                raise
            left_out[name] = one_line(error, 300).removeprefix(f"arm {name}: ")
            continue
        twin = next((item.name for item in found if _alike(bare, item, contender)), None)
        if twin and arms and name in known:
            raise UsageError(f"arm '{name}' is the same plan as {twin}; leave it out")
        if twin and not arms:
            left_out[name] = f"the same plan as {twin}"
        else:
            found.append(contender)
    question = replace(
        bare, contenders=tuple(found), rates=tuple(sorted(rates)), tuning=tuning,
        budgets=tuple(sorted(budgets)), budget_rate=budget_rate,
        about={**(about or {}), "left_out": left_out},
    )  # fmt: skip
    if len(found) < 2:
        why = "--arms has token level alone" if arms else "the recipe trains on tokens throughout"
        raise UsageError(f"there is nothing to compare: {why}; an arm is such as k2:patch_size=2")
    for budget in question.budgets:
        check_data(question.study([question.at_budget(found[0], None, budget)]))
    return question


def measured_length(question: Question, entries: Mapping[str, Any]) -> float:
    """FLOPs or tokens of the recipe with ``entries`` at the length it asks for."""
    arm = Arm(BASELINE, "", entries)
    return measured(question.study([arm]), arm, question.held_equal)


def equalized(question: Question, contender: Contender, target: float) -> Contender:
    """``contender`` as long as has ``target`` FLOPs or tokens, and in words if it has none."""
    arm = Arm(contender.name, "", contender.recipe)
    study = held_at(question.study([arm]), target, question.held_equal)
    (found,) = study.arms
    run = plan_of(study, found)
    words = contender.words or "; ".join([plan_words(run), *_besides(contender.recipe)])
    return replace(contender, words=words, recipe=found.recipe, equality=study.equality[arm.name])


def _besides(entries: Mapping[str, Any]) -> list[str]:
    """What of an arm is no matter of its plan: ``optim adamw_torch``."""
    return [
        f"{path.rpartition('.')[2]} {value}"
        for path, value in entries.items()
        if not path.startswith("plan.")
    ]


def plan_words(run: Planned) -> str:
    """A plan in a line: ``patches of 4 for 30% of the positions, then tokens``."""
    plan, length = run.plan, run.plan.spec.context_length
    if all((stage.patch_size, stage.context_length) == (1, length) for stage in plan.stages):
        return "tokens throughout"

    *first, last = plan.stages
    total = plan.total_positions
    stages = [
        f"{stage.named(length)} for {stage.positions / total:.0%} of the positions"
        for stage in first
    ]
    parts = [", then ".join([*stages, last.named(length)])]
    parts.append(_AT_SWITCH[str(plan.spec.optimizer_at_switch)])
    scope = {"run": "one schedule", "stage": "a schedule a stage"}[str(plan.spec.schedule_scope)]
    settings = [f"{name} {value}" for name, value in used(plan.spec).items()]
    if any(len(set(stage.slot_weights)) > 1 for stage in plan.stages):
        settings.append(f"slot_weights {plan.spec.slot_weights}")
    return "; ".join([*parts, f"{scope} ({plan.spec.schedule})", *settings])


def _patch_size(question: Question) -> int | None:
    """K of the recipe, of its first stage of patches; None where it names none."""
    if PlanSpec.from_dict(question.recipe["plan"]).wants_size():
        return None
    arm = Arm("recipe", "", {})
    stages = plan_of(question.study([arm]), arm).plan.stages
    return next((stage.patch_size for stage in stages if stage.patch_size > 1), None)


def _alike(question: Question, first: Contender, second: Contender) -> bool:
    plans = []
    for item in (first, second):
        arm = Arm(item.name, "", item.recipe)
        plan = plan_of(question.study([arm]), arm).plan
        single = len(plan.stages) == 1
        spec = plan.spec
        besides = {k: v for k, v in item.recipe.items() if not k.startswith("plan.")}
        plans.append((
            besides, spec.documents, plan.stages, spec.schedule, spec.warmup_steps,
            spec.decay_fraction, spec.min_rate,
            None if single else (spec.schedule_scope, spec.optimizer_at_switch, used(spec)),
        ))  # fmt: skip
    return plans[0] == plans[1]


def _outer_commas(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]
