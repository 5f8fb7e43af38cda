"""Train what a question asks, in its order, and write down what came out.

First every contender at every learning rate, on the first seed or few; then each at the best of
its own on all seeds, and the baseline at its budgets. Which runs come later depends on what the
earlier ones ended at, and on nothing else: the same command again comes to the same runs, finds
those that are finished and trains the rest. Runs that lost or failed stay in the folder and in the
results.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.analysis.studies import comparison_results as results
from patchtrain.analysis.studies.places import runs_at_a_time
from patchtrain.analysis.studies.question import BASELINE, Contender, Question
from patchtrain.analysis.studies.results import finished
from patchtrain.analysis.studies.runner import Keep, Say, concluding, train_runs
from patchtrain.analysis.studies.study import (
    Arm,
    Study,
    claim,
    read_written,
    refuse_changed,
    refuse_foreign,
    run_folder,
)
from patchtrain.data.store import TokenStore, is_store
from patchtrain.errors import UsageError
from patchtrain.files import write_json
from patchtrain.report.formats import seeds_in_words
from patchtrain.runs import versions

if TYPE_CHECKING:
    from patchtrain.analysis.studies.search import Search

_STUDY = "study.json"
Rate = float | None  # None: the recipe's own


@dataclass
class Work:
    """The folder of a comparison while its runs are trained."""

    question: Question
    folder: Path
    jobs: int = 1
    say: Say = print
    quiet: bool = False
    keep: Keep = "models"  # of a finished run
    count_only: bool = False  # train nothing
    searches: bool = False
    arms: dict[str, Arm] = field(default_factory=dict)  # variants asked for, by name
    tried: dict[str, dict[Rate, Arm]] = field(default_factory=dict)  # variants by contender
    chosen: dict[str, Arm] = field(default_factory=dict)  # of each contender, the best variant
    budgets: dict[float, Arm] = field(default_factory=dict)  # of the baseline
    wanted: dict[tuple[str, int], None] = field(default_factory=dict)  # runs: variant and seed
    failed: dict[str, str] = field(default_factory=dict)  # by run
    trials: list[dict[str, Any]] = field(default_factory=list)  # of a search
    parts: int = 0  # begun

    def tune(self, contenders: Iterable[Contender]) -> None:
        """Train contenders at each of the question's rates on the tuning seeds."""
        variants = []
        for contender in contenders:
            tried = self.tried.setdefault(contender.name, {})
            for rate in self.question.rates or (None,):
                tried[rate] = self.question.variant(contender, rate)
                variants.append(tried[rate])
        seeds = self.question.tuning_seeds
        runs = len(variants) * len(seeds)
        self.begin(f"{runs} run{'s' * (runs > 1)} with {seeds_in_words(seeds)}")
        self.try_out(variants)

    def try_out(self, variants: Iterable[Arm]) -> None:
        """Train variants on the tuning seeds."""
        seeds = self.question.tuning_seeds
        self.train([(arm, seed) for arm in variants for seed in seeds])

    def choose(self) -> None:
        """Take each contender's best rate by the tuning seeds, and by no other."""
        for name, variants in self.tried.items():
            ended = {rate: self.ended_at(arm) for rate, arm in variants.items()}
            good = [(end, rate or 0.0) for rate, end in ended.items() if end is not None]
            if good:
                rate = min(good)[1]  # the smaller rate of two that are as good
                self.chosen[name] = variants[rate if rate in variants else None]

    def repeat(self) -> None:
        """Train the chosen variants on the other seeds: the best few, or all of them."""
        if not self._repeats:
            return
        self.begin("the arms at the rates chosen, with all seeds")
        names = self.confirmed()
        self.train([(self.chosen[name], seed) for seed in self.question.seeds for name in names])

    def confirmed(self) -> list[str]:
        """The contenders that get all seeds: those that gained most, with their references."""
        question = self.question
        ended = {name: self.ended_at(arm) for name, arm in self.chosen.items()}
        against = {item.name: item.reference for item in question.contenders}
        # Without its reference's end, a point's own says less: it comes after the others.
        ranks = {
            name: (other is None, end if other is None else end - other)
            for name, end in ended.items()
            if end is not None and (reference := against[name])
            for other in [ended.get(reference)]
        }
        ranked = sorted(ranks, key=lambda name: ranks[name])
        best = set(ranked if question.confirm is None else ranked[: question.confirm])
        best |= {reference for name in best if (reference := against[name]) in self.chosen}
        return [item.name for item in question.contenders if item.name in best]

    def spend(self) -> None:
        """Train the baseline at its budgets, at the rate asked for or its best at full length."""
        baseline = self.chosen.get(BASELINE)
        if baseline is None or not self.question.budgets:
            return
        contender = self.question.contender(BASELINE)
        (rate,) = self.question.budget_rates([baseline.notes["learning_rate"]])
        for budget in self.question.budgets:
            if budget != 1.0:
                self.budgets[budget] = self.question.at_budget(contender, rate, budget)
        self.budgets.setdefault(1.0, baseline)
        self.begin("token level at its budgets")
        self.train([(arm, seed) for seed in self.question.seeds for arm in self.budgets.values()])

    def train(self, runs: Sequence[tuple[Arm, int]]) -> None:
        """Train what of ``runs`` is not finished."""
        if not runs:
            return
        arms = {**self.arms, **{arm.name: arm for arm, _ in runs}}
        study = self.question.study(list(arms.values()))
        refuse_another_text(study, self.folder, runs)
        self._write(study)
        self.arms = arms
        names = dict.fromkeys((arm.name, seed) for arm, seed in runs)
        self.wanted.update(names)
        chosen = [(study.arm(name), seed) for name, seed in names]
        if self.count_only:
            return
        train_runs(
            study, self.folder, self.jobs, self.failed, self.say, self.quiet, chosen, self.keep
        )

    def ended_at(self, arm: Arm) -> float | None:
        """Mean bits per byte of a variant on the tuning seeds; None where one is not finished."""
        runs = [run_folder(self.folder, arm, seed) for seed in self.question.tuning_seeds]
        ends = [end for run in runs if (end := results.bits_per_byte(run)) is not None]
        return statistics.fmean(ends) if len(ends) == len(runs) else None

    def add(self, contender: Contender) -> None:
        """One more contender, which a search came to."""
        if all(item.name != contender.name for item in self.question.contenders):
            found = (*self.question.contenders, contender)
            self.question = replace(self.question, contenders=found)

    def refuse(self, name: str, reason: str) -> None:
        """A contender that cannot be trained."""
        self.question = replace(self.question, unfit={**self.question.unfit, name: reason})

    def conclude(self) -> dict[str, Any]:
        """Count what is finished and write it down, with the page; nothing before the first run."""
        if not self.arms:  # refused, or cut short at once
            return {}
        from patchtrain.report.compare_page import write_compare_page

        found = results.summarise(self)
        write_json(self.folder / "results.json", found)
        write_compare_page(found, self.folder / "report.html")
        return found

    @property
    def _repeats(self) -> bool:
        return len(self.question.seeds) > 1

    def begin(self, line: str) -> None:
        """Say what part of the whole comes now: what is left is counted in each part alone."""
        self.parts += 1
        last = 1 + self.searches + self._repeats + bool(self.question.budgets)
        if not self.quiet:
            self.say(f"part {self.parts} of {last}: {line}")

    def _write(self, study: Study) -> None:
        """``study.json``, with the variants of earlier calls; raises as ``known_variants``."""
        known = known_variants(study, self.folder)
        # Of what is known of the text, the fingerprint alone changes what a run is.
        text = _fingerprint(study.about)
        about = {} if text is None else {"store": {"fingerprint": text}}
        now = {**study.to_dict(), "about": about}
        known.update({arm["name"]: arm for arm in now["arms"]})
        write_json(
            self.folder / _STUDY, {**now, "arms": list(known.values()), "versions": versions()}
        )


def known_variants(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """The arms, by name, that earlier calls trained in the folder of a comparison.

    Raises:
        UsageError: it holds another one: another recipe, another text, or other arms of the same
            names.
    """
    file = folder / _STUDY
    now = study.to_dict()
    before = read_written(file) if file.is_file() else now
    known = {arm["name"]: arm for arm in before.get("arms", [])}
    changed = [key for key in ("name", "held_equal", "recipe") if before.get(key) != now[key]]
    texts = [_fingerprint(about) for about in (before.get("about"), now["about"])]
    if None not in texts and texts[0] != texts[1]:  # earlier versions did not write it down
        changed.append(f"the text in {now['recipe'].get('store')}")
    changed += [
        f"arm {arm['name']}"
        for arm in now["arms"]
        if known.get(arm["name"], arm).get("recipe") != arm["recipe"]
    ]
    refuse_changed(file, changed)
    return known


def refuse_another_text(study: Study, folder: Path, runs: Sequence[tuple[Arm, int]]) -> None:
    """Refuse finished runs that were not trained on what is in their arm's store now.

    An arm may have a store of its own, of which ``study.json`` knows nothing. A run whose record
    does not say what it was trained on is taken as it is.

    Raises:
        UsageError: naming the first such run.
    """
    stores: dict[str, str | None] = {}
    for arm, seed in runs:
        run = run_folder(folder, arm, seed)
        then = _fingerprint(finished(run))
        if then is None:
            continue
        store = str(study.values(arm).get("store"))
        if store not in stores:
            path = Path(store)
            stores[store] = TokenStore.open(path).fingerprint if is_store(path) else None
        if stores[store] not in (None, then):
            raise UsageError(
                f"{folder} holds another study: {run.path.name} was not trained on what is in "
                f"{store} now; name another --out, or start over with --overwrite"
            )


def _fingerprint(record: Any) -> str | None:
    """That of the store in what a study or a run says of it; None where it says nothing."""
    store = record.get("store") if isinstance(record, dict) else None
    return store.get("fingerprint") if isinstance(store, dict) else None


def refuse_another_comparison(
    question: Question, folder: Path, search: Search | None = None
) -> None:
    """Raises as ``run_comparison`` does where the folder holds something else, and writes nothing.

    What a search comes to is not known yet, but its axes are.
    """
    refuse_foreign(folder)
    variants = question.variants()
    study = question.study(variants)
    known_variants(study, folder)
    refuse_another_text(study, folder, [(arm, seed) for arm in variants for seed in study.seeds])
    if search is not None:
        search.known(folder)


def run_comparison(
    question: Question,
    folder: Path,
    jobs: int | None = None,
    *,
    say: Say = print,
    quiet: bool = False,
    keep: Keep = "models",
    search: Search | None = None,
    count_only: bool = False,
) -> dict[str, Any]:
    """Train, count, and write ``results.json`` and ``report.html``; returns the results.

    Args:
        question: with its contenders at their lengths.
        folder: the comparison's folder, made if it is not there.
        jobs: runs at a time; one a GPU, else one a core, if None.
        say: is given a line where something begins, ends or fails, and now and then on progress.
        quiet: no lines on progress.
        keep: what is left of a run that is finished.
        search: trains more contenders, which it chooses as it goes, after the question's own.
        count_only: train nothing; what is there is counted, with the runs that are missing.

    Raises:
        UsageError: the folder holds something else, another study or another search, of which
            nothing is changed; or a study is running in it.
        PatchtrainError: every run failed.
    """
    refuse_another_comparison(question, folder, search)
    claim(folder)
    searches = search is not None
    jobs = jobs or runs_at_a_time(question.recipe)
    work = Work(question, folder, jobs, say, quiet, keep, count_only, searches)
    with concluding(folder, work.failed, work.conclude) as found:
        work.tune(question.contenders)
        if search is not None:
            search(work)
        work.choose()
        work.repeat()
        work.spend()
    return found
