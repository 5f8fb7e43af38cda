"""How long the training loop waits for its next batch: what a slow store or disk costs a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from transformers import Trainer

from patchtrain.training.record import RunRecord


class CountingDataWait(Trainer):
    """The part of ``PatchTrainer`` that counts this time on the first process, for the metrics.

    Batches that workers make while the device computes cost nothing; without workers, making them
    is all waiting.
    """

    record: RunRecord | None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        begin = time.perf_counter()
        found: tuple[list[Any], Any] = super().get_batch_samples(
            epoch_iterator, num_batches, device
        )
        if self.record is not None:
            self.record.waited(time.perf_counter() - begin)
        return found
