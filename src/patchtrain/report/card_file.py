"""``RUN/model/README.md``: where the model card stands, and how it is kept up to date.

The file belongs to its user. What patchtrain writes is the YAML at the top and a section between
two marks; the opening mark has checksums of both. Whatever no longer is as it was written has been
edited, and stays; so does all that stands outside of the marks, and a README of somebody else's.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import write_text
from patchtrain.model_folder import CARD
from patchtrain.report.card import Prices, body, front_matter, plain
from patchtrain.report.summary import RunSummary
from patchtrain.runs import RunFolder

_END = "<!-- patchtrain: end of what is written anew -->"
_BEGIN = re.compile(
    r"<!-- patchtrain: written anew after each measurement, unless edited (\{[^\n]*\}) -->"
)
_FRONT = re.compile(r"\A---\n.*?\n---(?=\n|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Card:
    """What became of a card: ``written``, and where something was left as it is, ``kept`` why."""

    path: Path
    written: bool
    kept: str | None = None


def write_card(run: RunFolder, prices: Prices | None = None) -> Card:
    """Write the card of a run, or bring the one that is there up to date.

    ``prices`` left out are those of the card that is there. Text that its user wrote or edited is
    never touched.

    Raises:
        UsageError: the run has no model yet.
        PatchtrainError: the file is a link, or cannot be read.
    """
    file = run.model / CARD
    if not (run.model / "config.json").is_file():
        raise UsageError(f"{run.path} has no model yet, so there is nothing to describe")
    if file.is_symlink():
        raise PatchtrainError(f"{file} is a link to another file, so it is not written")
    summary = RunSummary.read(run)
    front = front_matter(summary)
    if not file.exists():
        prices = prices or Prices()
        section = _marked(_checksum(front), body(summary, run.model, prices), prices)
        write_text(file, f"{front}\n\n# {plain(summary.name)}\n\n{section}\n")
        return Card(file, True)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PatchtrainError(f"{file} cannot be read: {error}") from error
    return _update(file, text, summary, run, prices, front)


def _update(
    file: Path, text: str, summary: RunSummary, run: RunFolder, prices: Prices | None, front: str
) -> Card:
    begin = _BEGIN.search(text)
    end = text.find(_END, begin.end()) if begin else -1
    if begin is None or end < 0:
        return Card(file, False, "it has no section of patchtrain's (move it away to get one)")
    told = _told(begin[1])
    section = text[begin.end() : end].strip("\n")
    if _checksum(section) != told.get("section"):
        return Card(file, False, "its section was edited (take the marks away to keep it for good, "
                                 "or the section to have it written anew)")  # fmt: skip
    prices = replace(_prices(told), **_given(prices))
    before, head = text[: begin.start()], _FRONT.match(text)
    edited = head is None or _checksum(head[0]) != told.get("front")
    front_sum = told.get("front") if edited else _checksum(front)
    if head is not None and not edited:
        before = front + before[len(head[0]) :]
    section = _marked(front_sum, body(summary, run.model, prices), prices)
    write_text(file, before + section + text[end + len(_END) :])
    return Card(file, True, "the YAML at its top was edited and stays as it is" if edited else None)


def _marked(front_sum: str | None, section: str, prices: Prices) -> str:
    """The section between its marks. Of an edited YAML, the checksum is of what it once was."""
    values = {name: value for name, value in asdict(prices).items() if value is not None}
    mark = json.dumps({"front": front_sum, "section": _checksum(section), **values})
    return (
        f"<!-- patchtrain: written anew after each measurement, unless edited {mark} -->\n\n"
        f"{section}\n\n{_END}"
    )


def refresh_card(run: RunFolder) -> None:
    """Bring the card of a run up to date if there is one; what is in the way leaves it as it is.

    For what comes after a measurement, which a card must not fail.
    """
    if (run.model / CARD).is_file():
        try:
            write_card(run)
        except (OSError, PatchtrainError, TypeError, ValueError, KeyError):
            return


def _told(mark: str) -> dict[str, Any]:
    try:
        told = json.loads(mark)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _prices(told: dict[str, Any]) -> Prices:
    found = {name: told.get(name) for name in asdict(Prices())}
    return Prices(**{name: float(value) for name, value in found.items()
                     if isinstance(value, int | float)})  # fmt: skip


def _given(prices: Prices | None) -> dict[str, float]:
    values = asdict(prices) if prices else {}
    return {name: value for name, value in values.items() if value is not None}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
