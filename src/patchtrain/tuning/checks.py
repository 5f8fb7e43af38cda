"""What a tuning asks before it begins: a folder to write to, the same tuning on resuming."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from patchtrain.errors import UsageError
from patchtrain.runs import RunFolder

HELD_OUT = "held_out.jsonl"


def check_out(model: Path, out: Path, resume: bool) -> None:
    """Refuse a folder that cannot be, or must not become, the one of this tuning."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("sft runs in one process: start it without torchrun")
    if out.resolve() in (model.resolve(), (model / "model").resolve()):
        raise UsageError(f"--out {out} is the model to be tuned; choose another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; choose a folder")
    there = RunFolder(out).holds_something(HELD_OUT)  # which is written before the first step
    if there and not resume:
        raise UsageError(
            f"{out} exists; go on with it with --resume, delete it, or choose another with --out"
        )
    if resume and not (out / "run.json").is_file() and there:
        raise UsageError(f"{out} is not the folder of a tuning, so --resume does not touch it")


def check_same(folder: RunFolder, identity: dict[str, Any]) -> None:
    """Refuse to go on with a tuning of other data, another model or other settings."""
    before = folder.part("tuning").get("identity")
    if not isinstance(before, dict):
        raise UsageError(f"{folder.path} is not the folder of a tuning; choose another with --out")
    now = json.loads(json.dumps(identity))
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        raise UsageError(
            f"{folder.path} was tuned with another {', '.join(changed)}: --resume goes on with the "
            "same, or choose another folder with --out"
        )
