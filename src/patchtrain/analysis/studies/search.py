"""Random and Bayesian search over the axes of a sweep, through optuna.

Every trial is one point at one learning rate on the tuning seeds. What comes next is a function of
the trials so far and nothing else: each batch replays them into a fresh optuna study, whose sampler
is seeded with their number. So a search that was cut short goes on as if it had not been, and
nothing of optuna's is stored. As many trials as there are jobs are asked for at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.analysis.studies.question import RATE
from patchtrain.analysis.studies.study import read_written
from patchtrain.analysis.studies.sweep import Axis, Range, Sweep
from patchtrain.errors import UsageError, one_line
from patchtrain.extras import require
from patchtrain.files import write_json
from patchtrain.report.formats import seeds_in_words

if TYPE_CHECKING:
    from patchtrain.analysis.studies.comparison import Work

SEARCHES = ("random", "bayes")
_FILE = "trials.json"
_RANDOM_FIRST = 8  # trials before the Bayesian search has something to go by

Trial = dict[str, Any]  # values by path (the rate among them), contender, learning_rate, value


@dataclass
class Search:
    """A search; calling it with a comparison's work trains its trials."""

    sweep: Sweep
    kind: str  # of SEARCHES
    trials: int
    seed: int = 0
    unfit: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in SEARCHES:
            raise UsageError(f"--search is grid, {' or '.join(SEARCHES)}, not {self.kind}")
        if not 1 <= self.trials <= 1000:
            raise UsageError(f"--trials is a number from 1 to 1000, not {self.trials}")
        optuna()  # a missing package is said before anything is trained

    @property
    def axes(self) -> dict[str, Axis]:
        """With the learning rate, if it is searched."""
        rates: Axis = self.sweep.rates
        searched = isinstance(rates, Range) or len(rates) > 0
        return {**self.sweep.axes, **({RATE: rates} if searched else {})}

    def __call__(self, work: Work) -> None:
        file = work.folder / _FILE
        done = self.known(work.folder)
        work.trials = done
        seeds = seeds_in_words(work.question.tuning_seeds)
        work.begin(f"{self.trials} trial{'s' * (self.trials > 1)} with {seeds}")
        while True:
            pending = [trial for trial in done if trial["value"] is None and not trial["failed"]]
            if not pending:
                missing = min(work.jobs, self.trials - len(done))
                if missing <= 0:
                    break
                pending = [self._trial(values) for values in self.suggest(done, missing)]
                done += pending
                self._write(file, done)
            self._train(work, pending)
            self._write(file, done)

    def left(self, folder: Path | None) -> int:
        """How many trials are to be made at most; ``None``: a folder that holds none."""
        return self.trials if folder is None else max(self.trials - len(self.known(folder)), 0)

    def suggest(self, done: list[Trial], count: int) -> list[dict[str, Any]]:
        """The next ``count`` choices after the trials that are ``done``."""
        tuna, seed = optuna(), self.seed + 7919 * len(done)
        if self.kind == "random":
            sampler = tuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = tuna.samplers.TPESampler(
                seed=seed, constant_liar=True, multivariate=True, n_startup_trials=_RANDOM_FIRST,
                warn_independent_sampling=False,
            )  # fmt: skip
        study = tuna.create_study(sampler=sampler)
        space = {path: _distribution(tuna, axis) for path, axis in self.axes.items()}
        for trial in done:
            good = trial["value"] is not None
            study.add_trial(
                tuna.trial.create_trial(
                    params={path: _encoded(self.axes[path], value)
                            for path, value in trial["values"].items()},
                    distributions=space,
                    value=trial["value"] if good else None,
                    state=tuna.trial.TrialState.COMPLETE if good else tuna.trial.TrialState.FAIL,
                )
            )  # fmt: skip
        asked = [study.ask(space) for _ in range(count)]
        return [
            {path: _decoded(self.axes[path], value) for path, value in trial.params.items()}
            for trial in asked
        ]

    def _trial(self, values: dict[str, Any]) -> Trial:
        return {"values": values, "contender": None, "learning_rate": values.get(RATE),
                "value": None, "failed": False}  # fmt: skip

    def _train(self, work: Work, pending: list[Trial]) -> None:
        """Train trials, all at once, and write what they ended at into them."""
        runs = []
        for trial in pending:
            values = {path: value for path, value in trial["values"].items() if path != RATE}
            name = trial["contender"] = self.sweep.name_of(values)
            try:
                contender = self.sweep.point(values)
            except UsageError as error:
                trial["failed"] = True
                work.refuse(name, one_line(str(error), 300))
                continue
            work.add(contender)
            rate = trial["learning_rate"]
            arm = work.question.variant(contender, rate)
            work.tried.setdefault(name, {})[rate] = arm
            runs.append((trial, arm))
        work.try_out(arm for _, arm in runs)
        for trial, arm in runs:
            trial["value"] = work.ended_at(arm)
            trial["failed"] = trial["value"] is None

    def known(self, folder: Path) -> list[Trial]:
        """The trials of earlier calls, to be counted anew; ``UsageError`` of another search."""
        file = folder / _FILE
        if not file.is_file():
            return []
        known = read_written(file)
        if known.get("asked") != self._asked():
            raise UsageError(
                f"{file} is of another search; name another --out, or start over with --overwrite"
            )
        trials: list[Trial] = known["trials"]
        # Contenders are made anew, and finished runs are found where they are.
        return [{**trial, "value": None, "failed": False} for trial in trials]

    def _write(self, file: Path, trials: list[Trial]) -> None:
        write_json(file, {"asked": self._asked(), "trials": trials})

    def _asked(self) -> dict[str, Any]:
        axes = {
            path: axis.to_json() if isinstance(axis, Range) else list(axis)
            for path, axis in self.axes.items()
        }
        plain: dict[str, Any] = json.loads(
            json.dumps({"search": self.kind, "axes": axes, "seed": self.seed})
        )
        return plain


def optuna() -> Any:
    """The package, silent; ``UsageError`` where it is not installed."""
    import warnings

    found: Any = require("optuna", "a random or Bayesian search", "--search grid needs nothing")

    warnings.filterwarnings("ignore", category=found.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", category=FutureWarning, module="optuna")
    found.logging.set_verbosity(found.logging.ERROR)
    return found


def _distribution(tuna: Any, axis: Axis) -> Any:
    if not isinstance(axis, Range):
        # Lists and the like are no choices of optuna's: their JSON is.
        return tuna.distributions.CategoricalDistribution([json.dumps(v) for v in axis])
    if axis.whole:
        return tuna.distributions.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return tuna.distributions.FloatDistribution(axis.low, axis.high, log=axis.log)


def _encoded(axis: Axis, value: Any) -> Any:
    return value if isinstance(axis, Range) else json.dumps(value)


def _decoded(axis: Axis, value: Any) -> Any:
    if not isinstance(axis, Range):
        return json.loads(value)
    # Rounded, so that a name of a folder says the whole of it.
    return value if axis.whole else min(max(float(f"{value:.4g}"), axis.low), axis.high)
