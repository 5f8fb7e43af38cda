"""Zero-shot accuracy on lm-eval's tasks, from the Hub or from local files without a network.

The prompts, the data handling and the likelihoods are lm-eval's (EleutherAI's evaluation harness),
called through its Python interface on the model as it was loaded; ``task_scores`` makes the scores
of what it logged. The likelihoods are taken from a softmax in float32, whatever the model's dtype.

Any task or group of lm-eval can be named. Those in ``tasks/`` beside this file also read local
files, through ``task_data``; they are lm-eval's own tasks of the same names.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError, UsageError, nearest, one_line
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.task_scores import aggregate, first_metric, score_sample, summary
from patchtrain.extras import require

# Called with the number of answers to score, yields what counts those done.
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]

TASK_FILES = Path(__file__).parent / "tasks"
# Short names: the tasks of the patch-level paper, and those that a small model can do.
PRESETS = {
    "paper": ("mmlu", "hellaswag", "piqa", "winogrande", "arc_easy", "arc_challenge"),
    "small": ("blimp", "lambada", "sciq"),
}
_ALIASES = {"lambada": "lambada_openai"}
# Of lm-eval's own task files, those that the groups in tasks/ lay local data under.
_STOCK = ("blimp", "mmlu/default")
# The seed lm-eval's command line draws its shots with.
_SHOT_SEED = 1234


@dataclass(frozen=True)
class Tasks:
    """Tasks as lm-eval loaded them, their data included.

    ``names``: those asked for, presets resolved; a tag has become its tasks. ``loaded``: lm-eval's
    tasks and groups by name. ``task_data``: the folders their data came from, or None for the Hub.
    """

    names: tuple[str, ...]
    loaded: dict[str, Any]
    shots: int
    task_data: tuple[str, ...] | None

    def members(self, name: str) -> list[str]:
        """The tasks of a group, or the task itself."""
        group = self.loaded["groups"].get(name)
        return [task.task_name for task in group.get_all_tasks()] if group else [name]


def task_names(text: str) -> tuple[str, ...]:
    """The tasks in a list like ``small,piqa``, each once, with presets resolved.

    Raises:
        UsageError: there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = [name for word in words for name in PRESETS.get(word, (word,))]
    if not names:
        raise UsageError("--tasks names no task: for example --tasks hellaswag,piqa")
    return tuple(dict.fromkeys(_ALIASES.get(name, name) for name in names))


def load_tasks(
    names: Sequence[str], task_data: Sequence[str | Path] | None = None, shots: int = 0
) -> Tasks:
    """Load tasks and their documents; with ``task_data`` nothing is fetched from anywhere.

    That also tells the Hugging Face libraries of this process, in its environment, to stay offline.

    ``task_data``: folders with the data (see ``task_data.py`` and docs/zero-shot.md); None takes
    the Hub. ``shots``: solved examples before each question, whatever a task's own number is; tasks
    that fix none, as BLiMP does, have none.

    Raises:
        UsageError: lm-eval is not installed, no such task, or data that is not there.
        PatchtrainError: the Hub does not answer.
    """
    if shots < 0:
        raise UsageError(f"the number of shots must be 0 or more, not {shots}")
    places = None if task_data is None else tuple(str(folder) for folder in task_data)
    for place in places or ():
        if not Path(place).is_dir():
            raise UsageError(f"no folder at --task-data {place}")
    if places is not None:
        # Nothing below asks the network; this makes sure of it, also in what a task may import.
        os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1")
    require("lm_eval", "--tasks")
    import datasets
    import lm_eval.tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if places is not None:
        datasets.disable_progress_bars()  # a download from the Hub keeps its own
    stock = Path(lm_eval.tasks.__file__).parent
    manager = (
        lm_eval.tasks.TaskManager()
        if places is None
        else lm_eval.tasks.TaskManager(
            # Without its defaults, which take it seconds to look through.
            include_defaults=False,
            include_path=[*(stock / folder for folder in _STOCK), TASK_FILES],
            metadata={"task_data": list(places)},
        )
    )
    with_data = manager.all_tasks if places is None else _names_with_data()
    for name in names:
        if name not in with_data:
            where = "lm-eval has no task" if places is None else "there is no local data for"
            raise UsageError(f"{where} '{name}'{nearest(name, with_data)}")
    try:
        loaded = manager.load(list(names))
    except PatchtrainError:
        raise
    except Exception as error:
        what = f"cannot load {', '.join(names)}: {one_line(f'{type(error).__name__}: {error}')}"
        if places is None:
            what += "; without a network, give the data with --task-data FOLDER"
        raise PatchtrainError(what) from error
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=_SHOT_SEED)
    return Tasks(_resolved(names, loaded), loaded, shots, places)


def evaluate_tasks(
    loaded: LoadedModel,
    tasks: Tasks,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    start_token: str | None = None,
) -> list[dict[str, Any]]:
    """One result for each of ``tasks.names``, as plain values for JSON.

    ``limit``: only the first documents of each task. ``batch_size``: answers at a time (default: 8,
    on a GPU as many as fit). ``start_token``: what a text without context, as in BLiMP, begins with
    (default: lm-eval's, the BOS token or the EOS where there is none). A group's result has those
    of its tasks under ``subtasks``.

    Raises:
        UsageError: a limit or batch size below 1, or no such token to begin with.
        PatchtrainError: the model cannot be run on the tasks, or a likelihood is no number.
    """
    for what, value in (("limit", limit), ("batch size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"the {what} must be at least 1, not {value}")
    first = _start_token_id(loaded, start_token)
    from lm_eval.evaluator import evaluate

    model = _language_model(loaded, first, batch_size, progress)
    try:
        with without_bars():
            found = evaluate(
                lm=model,
                task_dict=tasks.loaded,
                limit=limit,
                # Its bootstrap of what is no mean takes minutes; the means' errors are ours.
                bootstrap_iters=0,
                log_samples=True,
            )
    except PatchtrainError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise PatchtrainError(f"lm-eval cannot score {loaded.path}: {reason}") from error
    leaves = {name: _task_result(name, tasks, found, loaded) for name in tasks.loaded["tasks"]}
    about = {
        "shots": tasks.shots,
        "limit": limit,
        "batch_size": batch_size or model.batch_size,
        "max_length": model.max_length,
        "start_token": str(loaded.tokenizer.convert_ids_to_tokens(first)),
        "data": list(tasks.task_data) if tasks.task_data else "the Hub",
        "lm_eval_version": version("lm_eval"),
    }
    results = []
    for name in tasks.names:
        result = leaves.get(name) or _group_result(name, tasks, found, leaves)
        results.append({"task": name, **result, **about})
    return results


def _start_token_id(loaded: LoadedModel, token: str | None) -> int:
    if token is None:
        return loaded.start_token_id
    found = loaded.tokenizer.get_vocab().get(token)
    if found is None:
        raise UsageError(f"the tokenizer in {loaded.path} has no token '{one_line(token, 40)}'")
    return int(found)


def _language_model(
    loaded: LoadedModel, start_token_id: int, batch_size: int | None, progress: Progress | None
) -> Any:
    """lm-eval's view of the loaded model, which reports to ``progress``."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    class Counting(CacheHook):
        """Told of every answer that was scored."""

        def __init__(self, advance: Callable[[int], None]) -> None:
            super().__init__(None)
            self.advance = advance

        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            self.advance(1)

    class Model(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            if progress is None:
                return list(super().loglikelihood(requests, disable_tqdm=True))
            with progress(len(requests)) as advance:
                self.set_cache_hook(Counting(advance))
                return list(super().loglikelihood(requests, disable_tqdm=True))

    default = "auto" if loaded.model.device.type == "cuda" else 8
    return Model(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch_size or default,
        prefix_token_id=start_token_id,
        softmax_dtype="float32",
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Without a progress bar for the building of each task's prompts: BLiMP has 67 of them."""
    from functools import partial

    from lm_eval.api import task

    before = task.tqdm
    task.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        task.tqdm = before


def _task_result(
    name: str, tasks: Tasks, found: dict[str, Any], loaded: LoadedModel
) -> dict[str, Any]:
    task, samples = tasks.loaded["tasks"][name], found["samples"][name]
    # A task with several filters logs each document once for each.
    samples = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    for sample in samples:
        for response in sample["filtered_resps"]:
            if isinstance(response, tuple | list) and math.isnan(response[0]):
                raise PatchtrainError(
                    f"a likelihood of {name} under {loaded.path} is nan: the model is broken"
                )
    values = found["results"][name]
    return {
        "metric": first_metric(samples[0]),
        **summary([score_sample(task, sample) for sample in samples]),
        "documents_available": found["n-samples"][name]["original"],
        "source": _source(task),
        "task_version": found["versions"].get(name),
        "task_shots": task.get_config("num_fewshot"),
        "lm_eval": _metrics(values),
    }


def _group_result(
    name: str, tasks: Tasks, found: dict[str, Any], leaves: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    members = {task: leaves[task] for task in tasks.members(name)}
    return {
        "metric": next(iter(members.values()))["metric"],
        **aggregate(tasks.loaded["groups"][name], leaves),
        "task_version": found["versions"].get(name),
        "lm_eval": _metrics(found["results"][name]),
        "subtasks": members,
    }


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval's own numbers: ``acc``, or ``exact_match,FILTER`` where there are filters."""
    return {
        key.removesuffix(",none"): float(value)
        for key, value in values.items()
        if "," in key and isinstance(value, int | float) and math.isfinite(value)
    }


def _source(task: Any) -> str:
    """Where a task's documents came from: a data set and its split."""
    config = task.config
    local = config.dataset_kwargs or {}
    place = next((local[key] for key in ("folder", "file", "paradigm") if key in local), None)
    if place is None:
        place = "/".join(part for part in (config.dataset_path, config.dataset_name) if part)
    return f"{place}, {config.test_split or config.validation_split} split"


def _names_with_data() -> list[str]:
    """The tasks and groups of the files in ``tasks/``."""
    return sorted(file.stem for file in TASK_FILES.glob("*.yaml"))


def _resolved(names: Sequence[str], loaded: dict[str, Any]) -> tuple[str, ...]:
    """``names`` with a tag, or a group without a mean of its own, replaced by its tasks."""
    resolved: list[str] = []
    known = {**loaded["tasks"], **loaded["groups"]}
    asked = [name for name in names if name in known]
    covered = set(asked)
    for name in asked:
        group = loaded["groups"].get(name)
        if group is None or group.has_aggregation:
            resolved.append(name)
        else:
            resolved += [task.task_name for task in group.get_all_tasks()]
        if group is not None:
            covered |= {task.task_name for task in group.get_all_tasks()}
    resolved += [name for name in loaded["tasks"] if name not in covered]  # of tags
    return tuple(dict.fromkeys(resolved))
