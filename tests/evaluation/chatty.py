"""A tiny run whose context holds a conversation, and prompts of IFEval to ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.evaluation.tiny import save_tiny_run

CONTEXT = 256
PROMPTS: list[dict[str, Any]] = [
    {"key": 1, "prompt": "Write of cells without commas.",
     "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 2, "prompt": "Two sentences on a leaf, with sugar in them.",
     "instruction_id_list": ["length_constraints:number_sentences", "keywords:existence"],
     "kwargs": [{"num_sentences": 3, "relation": "less than"}, {"keywords": ["sugar"]}]},
    {"key": 3, "prompt": "In capitals.",
     "instruction_id_list": ["change_case:capital_word_frequency"],
     "kwargs": [{"capital_frequency": 1, "capital_relation": "at least"}]},
    {"key": 4, "prompt": "In German.", "instruction_id_list": ["language:response_language"],
     "kwargs": [{"language": "de"}]},
]  # fmt: skip


def save_chatty_run(folder: Path) -> Path:
    """A finished run of a random model with a context of 256."""
    run = save_tiny_run(folder, plan={"context_length": CONTEXT, "stages": []})
    config = run / "model" / "config.json"
    values = json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}
    config.write_text(json.dumps(values))
    return run


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
