"""A study: arms, seeds, and what is held equal between them.

An arm is the study's recipe with some entries replaced. A run is one arm with one seed; it lies in
a folder of its own, and is an ordinary run of ``patchtrain train``::

    STUDY/study.json          the study as resolved: recipes, seeds, what is held equal and how well
    STUDY/recipes/RUN.yaml    what each run trains
    STUDY/runs/RUN/           the run, RUN being ARM-seed-N
    STUDY/logs/RUN.txt        what it said
    STUDY/stores/NAME/        token stores that the study made
    STUDY/results.json        what came out so far
    STUDY/report.html         the page
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import check_claim, claim_folder
from patchtrain.recipe import Recipe
from patchtrain.runs import RunFolder

HELD = ("compute", "data")
MARKER = ".patchtrain-study"
MOST_RUNS = 1000


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str  # letters, digits, '.', '-' and '_': it names folders
    words: str  # what it is, for a table
    recipe: Mapping[str, Any]  # entries of the study's recipe to replace, by path: plan.stages
    against: tuple[str, ...] = ()  # names of the arms that it is compared with
    notes: Mapping[str, Any] = field(default_factory=dict)  # facts about it, for the tables


@dataclass(frozen=True)
class Equality:
    """How well an arm holds what is to be equal."""

    target: float  # FLOPs or tokens
    actual: float

    @property
    def off(self) -> float:
        """The rounding error: 0.001 is a thousandth too much."""
        return self.actual / self.target - 1


@dataclass(frozen=True)
class Study:
    """What is to be trained and compared."""

    name: str
    title: str
    recipe: Mapping[str, Any]  # values of a Recipe, without seed and out
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    held_equal: str  # of HELD
    about: Mapping[str, Any] = field(default_factory=dict)  # corpus and settings, JSON types
    equality: Mapping[str, Equality] = field(default_factory=dict)  # by arm

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        problems = [
            f"arm '{name}' cannot name a folder: use letters, digits, '.', '-' and '_'"
            for name in names
            if not re.fullmatch(r"\w[\w.-]*", name)
        ]
        problems += [f"arm '{name}' is there twice" for name in {*names} if names.count(name) > 1]
        problems += [
            f"arm '{arm.name}' is compared with '{other}', which is no arm"
            for arm in self.arms
            for other in arm.against
            if other not in names
        ]
        if not self.arms or not self.seeds:
            problems.append("a study has at least one arm and one seed")
        if len(set(self.seeds)) < len(self.seeds):
            problems.append("a seed is there twice")
        if wrong := [seed for seed in self.seeds if not 0 <= seed < 2**32]:
            problems.append(f"a seed is a number from 0 to {2**32 - 1:,}, not {wrong[0]}")
        if self.held_equal not in HELD:
            problems.append(f"held_equal is one of {', '.join(HELD)}, not {self.held_equal}")
        if problems:
            raise UsageError(f"study {self.name}: " + "; ".join(problems))

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def runs(self) -> list[tuple[Arm, int]]:
        """All runs; those of one seed together, so that a study cut short has whole pairs."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def values(self, arm: Arm) -> dict[str, Any]:
        """The values of an arm's recipe, without seed and out.

        Raises:
            UsageError: an entry lies inside of what is no section.
        """
        values = copy.deepcopy(dict(self.recipe))
        for path, value in arm.recipe.items():
            place, *keys = values, *path.split(".")
            for key in keys[:-1]:
                place = place.setdefault(key, {})
                if not isinstance(place, dict):
                    raise UsageError(f"arm {arm.name}: '{path}': {key} is a value, not a section")
            place[keys[-1]] = copy.deepcopy(value)
        return values

    def recipe_of(self, arm: Arm, seed: int, folder: Path) -> Recipe:
        """The recipe of one run of the study in ``folder``; ``UsageError`` names what is wrong."""
        values = {**self.values(arm), "seed": seed, "out": str(run_folder(folder, arm, seed).path)}
        return Recipe.check(values, f"arm {arm.name}")

    def to_dict(self) -> dict[str, Any]:
        """JSON types; equal for two studies whose runs are the same."""
        arms = [
            {
                "name": arm.name,
                "words": arm.words,
                "recipe": dict(arm.recipe),
                "against": list(arm.against),
                "notes": dict(arm.notes),
                **(_equal(self.equality[arm.name]) if arm.name in self.equality else {}),
            }
            for arm in self.arms
        ]
        values = {
            "format_version": 1,
            "name": self.name,
            "title": self.title,
            "held_equal": self.held_equal,
            "seeds": list(self.seeds),
            "about": dict(self.about),
            "recipe": dict(self.recipe),
            "arms": arms,
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists
        return plain


def refuse_too_many(runs: int) -> None:
    """``UsageError`` where there are more runs than anyone means."""
    if runs > MOST_RUNS:
        raise UsageError(f"{runs:,} runs are more than {MOST_RUNS:,}")


def run_name(arm: Arm, seed: int) -> str:
    return f"{arm.name}-seed-{seed}"


def run_folder(folder: Path, arm: Arm, seed: int) -> RunFolder:
    return RunFolder(folder / "runs" / run_name(arm, seed))


def refuse_foreign(folder: Path) -> None:
    """Raises as ``claim`` would, and leaves the folder as it is."""
    check_claim(folder, MARKER)


def claim(folder: Path) -> None:
    """Mark ``folder`` as a study's; raises as ``files.claim_folder``."""
    claim_folder(folder, MARKER)


def start_over(folder: Path) -> None:
    """Delete what is in a study's folder; raises as ``claim``, and where the study is running."""
    claim(folder)
    held = RunFolder(folder)
    with held.locked():
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (MARKER, held.lock_file.name):
                path.unlink()


def refuse_another_study(study: Study, folder: Path) -> None:
    """Refuse to go on in the folder of another study.

    More seeds are no other study: the runs of the old ones stay as they are.
    """
    file = folder / "study.json"
    if not file.is_file():
        return
    before, now = read_written(file), study.to_dict()
    if isinstance(about := before.get("about"), dict):
        before["about"] = {**now["about"], **about}  # earlier versions wrote down less
    changed = [
        key for key in now if key != "seeds" and before.get(key) != now[key]
    ]  # what else the file has (versions, times) may differ
    refuse_changed(file, changed)


def refuse_changed(file: Path, changed: Sequence[str]) -> None:
    """``UsageError`` where anything is ``changed`` against the study in ``file``."""
    if changed:
        raise UsageError(
            f"{file.parent} holds another study: {', '.join(changed)} "
            f"differ{'s' * (len(changed) == 1)} from {file}; name another --out, or start over "
            f"with --overwrite"
        )


def read_written(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier call left in a study's folder."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise PatchtrainError(f"{file} is not what a study wrote; --overwrite starts over")
    return values


def _equal(equality: Equality) -> dict[str, Any]:
    return {"target": equality.target, "actual": equality.actual, "off": equality.off}
