"""Train the studies of evidence.yaml, as far as time goes, and keep what came out of every run.

    python benchmarks/evidence.py --list
    python benchmarks/evidence.py ideas-textbooks --data TEXTS --workers 2
    python benchmarks/evidence.py --collect

Evidence takes longer than one sitting. So each run that is finished is a line of
results/evidence/STUDY.jsonl: its recipe, seed, result, what it cost and its validation curve. What
is there is not trained again, by anyone, on any machine, nor for another study that asks for the
very same recipe; what is missing is trained in --work by `patchtrain compare` or `study sweep`, of
which each study is a call. --collect only counts anew.
The summary, with every arm at its own best rate, the arms that lost too, is
results/evidence/STUDY.json.

TEXTS is the folder with the corpora that evidence.yaml names; `stdlib`, the Python standard
library's sources, is on every machine, and so are the files of a package, `PACKAGE:PATH`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from common import about, one_line

from patchtrain.analysis.studies.asked import describe
from patchtrain.analysis.studies.comparison import run_comparison
from patchtrain.analysis.studies.question import Question, compared
from patchtrain.analysis.studies.runner import Keep, is_finished
from patchtrain.analysis.studies.study import Arm, claim, run_name
from patchtrain.analysis.studies.sweep import grid, swept
from patchtrain.data.prepare import prepare
from patchtrain.data.store import TokenStore, is_store
from patchtrain.errors import UsageError
from patchtrain.files import write_json, write_text
from patchtrain.recipe import Recipe
from patchtrain.runs import RunFolder

ROOT = Path(__file__).parents[1]
ASKED = Path(__file__).with_suffix(".yaml")
KEPT = ROOT / "results" / "evidence"
_OF_A_RUN = (
    "status", "started", "finished", "learning_rate", "compiled", "flops", "seconds", "versions",
    "machine", "result", "kept",
)  # fmt: skip
_OF_ITS_PLAN = ("total_tokens", "total_positions", "total_steps", "epochs")
_OF_ITS_MODEL = ("parameters", "body_parameters", "vocab_size")

# What accelerate reads: a run takes it over from the environment, so that recipes stay as they are.
_COMPILER = "ACCELERATE_DYNAMO_BACKEND"


class Ledger:
    """The finished runs of one study, on disk as lines of JSON."""

    def __init__(self, study: str, folder: Path) -> None:
        self.file = folder / f"{study}.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.rows[row["run"]] = row

    def unpack(self, work: Path) -> None:
        """Put the runs where a study looks for them, but for those that lie there already."""
        for name, row in self.rows.items():
            run = RunFolder(work / "runs" / name)
            if is_finished(run):
                continue
            run.path.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(line) + "\n" for line in row["curve"]]
            write_text(run.metrics_file, "".join(lines))
            write_text(run.recipe_file, yaml.safe_dump(row["recipe"], sort_keys=False))
            write_json(run.info_file, {**row["info"], "kept": "results"})

    def adopt(self, question: Question, found: Mapping[str, Any]) -> bool:
        """Take over what is missing and was trained for another study by the very same recipe."""
        others: dict[str, dict[str, Any]] = {}
        for file in sorted(self.file.parent.glob("*.jsonl")):
            if file != self.file:
                for row in Ledger(file.stem, file.parent).rows.values():
                    others.setdefault(json.dumps(row["recipe"], sort_keys=True), row)
        arms = {arm["name"]: Arm(arm["name"], "", arm["recipe"]) for arm in found["arms"]}
        before = len(self.rows)
        for run in found["missing"]:
            arm, seed = arms[run["arm"]], run["seed"]
            asked = json.dumps(_asked_of(question, arm, seed), sort_keys=True)
            if asked in others:
                name = run_name(arm, seed)
                self.rows[name] = {**others[asked], "run": name}
        return len(self.rows) > before

    def pack(self, work: Path) -> None:
        """Keep what is finished and not kept yet."""
        before = len(self.rows)
        for path in sorted((work / "runs").glob("*")):
            run = RunFolder(path)
            if path.name not in self.rows and is_finished(run):
                asked = (work / "recipes" / f"{path.name}.yaml").read_text(encoding="utf-8")
                self.rows[path.name] = _row(run, yaml.safe_load(asked))
        if len(self.rows) > before:
            self.save()

    def save(self) -> None:
        rows = (self.rows[name] for name in sorted(self.rows))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="default: all, in their order")
    parser.add_argument("--data", type=Path, default=Path("corpora"), metavar="TEXTS")
    parser.add_argument("--work", type=Path, default=Path("studies/evidence"), help="for the runs")
    parser.add_argument("--workers", type=int, help="runs at a time (default: one a core)")
    parser.add_argument("--keep", choices=["models", "results"], default="results",
                        help="of what is trained now (%(default)s)")  # fmt: skip
    parser.add_argument("--asked", type=Path, default=ASKED, help="the studies (%(default)s)")
    parser.add_argument("--kept", type=Path, default=KEPT, help="what came out (%(default)s)")
    parser.add_argument("--compile", action="store_true",
                        help="let torch compile what is trained now: the same but for rounding, "
                             "and faster where runs last minutes")  # fmt: skip
    parser.add_argument("--collect", action="store_true", help="train nothing, count what is kept")
    parser.add_argument("--list", action="store_true", help="the studies, and how far they are")
    args = parser.parse_args()
    asked = yaml.safe_load(args.asked.read_text(encoding="utf-8"))
    if args.compile:
        os.environ.setdefault(_COMPILER, "INDUCTOR")
    unknown = set(args.studies) - set(asked["studies"])
    if unknown:
        parser.error(f"no study {', '.join(sorted(unknown))} in {args.asked}; --list names them")
    names = args.studies or list(asked["studies"])
    if args.list:
        for name in names:
            print(f"{len(Ledger(name, args.kept).rows):5,} runs  {name}")
        return 0
    data, kept = args.data.resolve(), args.kept.resolve()
    for folder in (args.work, kept):
        folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        study = asked["studies"][name]
        # There, since a kept recipe names its store as stores/NAME, wherever it was trained.
        with one_line(name), contextlib.chdir(args.work):
            store = make_store(study["store"], asked["stores"], data)
            found = carry_out(
                name, question_of(study, store), kept, args.workers, args.collect, args.keep
            )
        # Neither the command line nor this machine: runs may come from many calls on several.
        runs = runs_of(found, Ledger(name, kept))
        head = {
            **about("evidence", found["held_equal"]),
            "command": f"python benchmarks/evidence.py {name}",
            "machine": machine_of(runs),
            "settings": {
                "threads": 1,
                "runs": len(runs),
                "compiled": sum(bool(run.get("compiled")) for run in runs),
            },
        }
        write_json(kept / f"{name}.json", {**found, **head})
        failed += len(found["failed"])
    return 1 if failed else 0


def carry_out(
    name: str,
    question: Question,
    kept: Path,
    workers: int | None,
    count_only: bool = False,
    keep: Keep = "results",
) -> dict[str, Any]:
    """Train what of a question is missing, in the folder ``name``; the results."""
    ledger, work = Ledger(name, kept), Path(name)
    claim(work)
    ledger.unpack(work)

    def say(line: str) -> None:
        ledger.pack(work)
        print(f"{name}: {line}", file=sys.stderr, flush=True)

    # The baseline's longer runs on their own: which ones, only the others tell, and another study
    # may have trained them.
    parts = [question]
    if question.budgets and not count_only:
        parts.insert(0, replace(question, budgets=()))
    for part in parts:
        # Counting first: what cannot be gone on with is refused before anything is trained.
        found = run_comparison(part, work, say=say, quiet=True, count_only=True)
        ledger.pack(work)  # what an earlier call trained and was killed before it kept it
        while ledger.adopt(part, found):  # what is asked for next may hang on what came out
            ledger.unpack(work)
            found = run_comparison(part, work, say=say, quiet=True, count_only=True)
            ledger.save()
        refuse_changed(part, found, ledger)
        if not count_only:
            try:
                found = run_comparison(part, work, workers, say=say, keep=keep)
            finally:
                ledger.pack(work)
    return found


def runs_of(found: Mapping[str, Any], ledger: Ledger) -> list[dict[str, Any]]:
    """What is kept of the runs that results are drawn from."""
    names = (
        run_name(Arm(arm["name"], "", {}), run["seed"])
        for arm in found["arms"]
        for run in arm["runs"]
    )
    return [ledger.rows[name]["info"] for name in names]


def machine_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The processors that runs were trained on; the first ones did not write theirs down."""
    names = {run["machine"].get("processor") for run in runs}
    known = sorted(names - {None}) + ["a processor not written down"] * (None in names)
    cores = sorted({str(run["machine"]["cores"]) for run in runs})
    return {"cpu": " and ".join(known), "cores": " or ".join(cores)}


def make_store(name: str, asked: Mapping[str, Any], data: Path) -> Path:
    """``patchtrain prepare``, once; the store's place."""
    store = Path("stores") / name
    if not is_store(store):
        store.parent.mkdir(exist_ok=True)
        settings = dict(asked[name])
        sources = [place(source, data) for source in settings.pop("sources")]
        prepare(sources, store, train_tokenizer=settings.pop("tokenizer"), **settings)
    return store


def place(source: str, data: Path) -> str:
    """A source of evidence.yaml as ``patchtrain prepare`` takes it."""
    package, colon, path = source.partition(":")
    if colon:
        return str(files(package) / path)
    return source if source == "stdlib" else str(data / source)


def question_of(study: Mapping[str, Any], store: Path) -> Question:
    """What a study of evidence.yaml asks: of its arms, or of a grid where it has axes instead."""
    recipe = Recipe.check({**study["recipe"], "store": str(store), "out": "none"}, "the study")
    shared: dict[str, Any] = {
        "held_equal": study.get("held_equal", "compute"),
        "seeds": study["seeds"],
        "tuning": study.get("tuning", 1),
        "about": {"corpus": store.name, "store": describe(TokenStore.open(store))},
    }
    rates = study.get("rates", ())
    if "over" in study:
        axes = [f"rate={','.join(map(str, rates))}", *study["over"]]
        return grid(swept(recipe, axes, confirm=study.get("confirm"), **shared))
    arms = ["token", *(_in_words(name, entries) for name, entries in study["arms"].items())]
    longer = {key: study[key] for key in ("budgets", "budget_rate") if key in study}
    question = compared(recipe, arms, rates=rates, **longer, **shared)
    return replace(question, confirm=study.get("confirm"))


def _in_words(name: str, entries: Mapping[str, Any]) -> str:
    """An arm as ``patchtrain compare --arms`` takes it."""
    return f"{name}:" + ",".join(f"{key}={json.dumps(value)}" for key, value in entries.items())


def refuse_changed(question: Question, found: Mapping[str, Any], ledger: Ledger) -> None:
    """Refuse runs that are kept and were not of this recipe: a name is never used twice."""
    for item in found["arms"]:
        arm = Arm(item["name"], "", item["recipe"])
        for run in item["runs"]:
            row = ledger.rows[run_name(arm, run["seed"])]
            if _asked_of(question, arm, run["seed"]) != row["recipe"]:
                raise UsageError(
                    f"{row['run']} in {ledger.file} is of another recipe; name the study anew"
                )


def _asked_of(question: Question, arm: Arm, seed: int) -> dict[str, Any]:
    """What decides the result of one run of a question."""
    recipe = question.study([arm]).recipe_of(arm, seed, Path())
    return _asked(recipe.model_dump(mode="json", exclude_none=True))


def _row(run: RunFolder, recipe: Mapping[str, Any]) -> dict[str, Any]:
    info = run.info()
    kept = {key: info[key] for key in _OF_A_RUN if key in info}
    kept["plan"] = {key: info["plan"][key] for key in _OF_ITS_PLAN}
    kept["model"] = {key: info["model"][key] for key in _OF_ITS_MODEL}
    return {
        "run": run.path.name,
        "recipe": _asked(recipe),
        "info": kept,
        "curve": run.metrics("eval"),
    }


def _asked(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of a recipe, what decides the result."""
    return {key: recipe[key] for key in ("store", "seed", "model", "plan", "training")}


if __name__ == "__main__":
    sys.exit(main())
