"""Made-up documents of every zero-shot task with local data, in the files they are read from."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

from patchtrain.evaluation.zero_shot import TASK_FILES

# Good and bad sentences; the last pair is a tie, whatever the model.
PAIRS = [
    ("The cell divides.", "The cell divide."),
    ("A leaf turns.", "A leaf turn."),
    ("The root takes water.", "The root take water."),
    ("Both halves live.", "Both halves live."),
]
PASSAGES = ["The cell is the smallest unit of life", "A cell divides and both halves live on"]
ANSWERS = [["a leaf", "the whole root", "soil", "light"], ["sugar", "water", "it", "the cell"]]


def write_task_folder(folder: Path) -> Path:
    """Two to four documents of each task."""
    disable_progress_bars()
    folder.mkdir(parents=True, exist_ok=True)
    with lzma.open(folder / "blimp.jsonl.xz", "wt", encoding="utf-8") as file:
        for paradigm in listed("blimp", r"paradigm: (\w+)"):
            for good, bad in PAIRS:
                file.write(json.dumps({"paradigm": paradigm, "good": good, "bad": bad}) + "\n")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    (folder / "lambada_test.jsonl").write_text(lines, encoding="utf-8")
    for place, rows, features in _sets():
        Dataset.from_list(rows, features=features).save_to_disk(folder / place)
    return folder


def listed(group: str, pattern: str) -> list[str]:
    return re.findall(pattern, (TASK_FILES / f"{group}.yaml").read_text(encoding="utf-8"))


def _sets() -> list[tuple[str, list[dict[str, Any]], Features | None]]:
    numbered = list(enumerate(ANSWERS))
    sets: list[tuple[str, list[dict[str, Any]], Features | None]] = [
        (
            "hellaswag/none/validation",
            [
                {
                    "activity_label": "Life",
                    "ctx_a": "A cell",
                    "ctx_b": "it",
                    "endings": answers,
                    "label": str(number),
                }
                for number, answers in numbered
            ],
            None,
        ),
        (
            "piqa/plain_text/validation",
            [
                {"goal": "Turn light", "sol1": answers[0], "sol2": answers[1], "label": number}
                for number, answers in numbered
            ],
            Features(
                goal=Value("string"),
                sol1=Value("string"),
                sol2=Value("string"),
                label=ClassLabel(names=["0", "1"]),
            ),
        ),
        (
            "winogrande/winogrande_xl/validation",
            [
                {
                    "sentence": "The leaf takes water, so the _ lives on.",
                    "option1": answers[0],
                    "option2": answers[1],
                    "answer": str(number + 1),
                }
                for number, answers in numbered
            ],
            None,
        ),
        (
            "sciq/none/validation",
            [
                {
                    "question": "What divides?",
                    "distractor1": answers[0],
                    "distractor2": answers[1],
                    "distractor3": answers[2],
                    "correct_answer": answers[3],
                    "support": " A cell divides.",
                }
                for answers in ANSWERS
            ],
            None,
        ),
    ]
    for name in ("ARC-Easy", "ARC-Challenge"):
        rows = [
            {
                "id": str(number),
                "question": "What divides?",
                "choices": {"text": answers, "label": ["A", "B", "C", "D"]},
                "answerKey": "ABCD"[number],
            }
            for number, answers in numbered
        ]
        sets.append((f"ai2_arc/{name}/validation", rows, None))
    kind = Features(
        question=Value("string"),
        subject=Value("string"),
        choices=[Value("string")],
        answer=ClassLabel(names=["A", "B", "C", "D"]),
    )
    for group in ("stem", "other", "social_sciences", "humanities"):
        for subject in listed(f"mmlu_{group}", r"folder: hails/mmlu_no_train/(\w+)"):
            rows = [
                {
                    "question": "What?",
                    "subject": subject,
                    "choices": answers,
                    # so that subjects score differently
                    "answer": (number + len(subject)) % 4,
                }
                for number, answers in numbered
            ]
            # The subjects have different sizes, as in MMLU itself.
            test = rows if subject != "anatomy" else rows * 3
            sets.append((f"hails/mmlu_no_train/{subject}/test", test, kind))
            sets.append((f"hails/mmlu_no_train/{subject}/dev", rows[:1], kind))
    return sets
