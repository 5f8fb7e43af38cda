"""Parts to one store: appended in the order of the shards, which gives the bytes of one pass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from patchtrain.data.parts import Parts
from patchtrain.data.readers import Counts
from patchtrain.data.split_files import map_file
from patchtrain.data.store import StoreWriter
from patchtrain.data.store_record import SPLITS
from patchtrain.data.tokenising import Lowest, Tally, note
from patchtrain.errors import PatchtrainError
from patchtrain.progress import Progress


def merge(parts: Parts, writer: StoreWriter, bar: Progress) -> Tally:
    """Append all parts to the store in the order of the shards.

    Raises:
        PatchtrainError: a part is missing or not what it was when it was made.
    """
    tally, done = Tally(), 0
    total = sum(parts.bytes_of(number) for number in range(len(parts.shards)))
    bar.start(f"merging {len(parts.shards):,} shards", total)
    for number in range(len(parts.shards)):
        record = parts.record(number)
        if record is None:
            raise PatchtrainError(
                f"the part {parts.folder(number)} is missing or damaged; run the command again, "
                "which makes it anew"
            )
        _add_tally(tally, record, writer.documents("train"))
        dtype = np.dtype(parts.plan["tokenizer"]["dtype"]).newbyteorder("<")
        for name in SPLITS:
            tokens = map_file(parts.folder(number) / f"{name}.tokens.bin", dtype)
            offsets = map_file(parts.folder(number) / f"{name}.offsets.bin", np.dtype("<i8"))
            counts = record["splits"][name]
            writer.append(name, tokens, offsets, counts["utf8_bytes"], counts["words"])
        done += parts.bytes_of(number)
        bar.update(done, note(writer))
    return tally


def _add_tally(tally: Tally, record: dict[str, Any], first: int) -> None:
    """Add what a part met; its train documents come after ``first`` others."""
    for entry in fields(Counts):
        total = getattr(tally.counts, entry.name) + record["counts"][entry.name]
        setattr(tally.counts, entry.name, total)
    tally.unknown += record["unknown"]
    if record["lowest"] is None:
        return
    lowest = Lowest(**{**record["lowest"], "digest": bytes.fromhex(record["lowest"]["digest"])})
    if lowest.digest < tally.lowest.digest:
        tally.lowest = Lowest(lowest.digest)
    if lowest.digest == tally.lowest.digest:
        tally.lowest.documents += [first + document for document in lowest.documents]
        tally.lowest.utf8_bytes += lowest.utf8_bytes
        tally.lowest.words += lowest.words
