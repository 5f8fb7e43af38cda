"""How a run is evaluated while it trains: at token level in every stage, on one measure."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from patchtrain.data.batches import read_rows, spread, spread_starts, token_array
from patchtrain.data.documents import AlignedDocuments, aligned_documents
from patchtrain.data.token_files import Pieces
from patchtrain.errors import UsageError
from patchtrain.evaluation.perplexity import evaluating, packed_loss, rows_loss
from patchtrain.patches import IGNORE
from patchtrain.plan import PlanSpec
from patchtrain.stage import REARRANGED, Stage
from patchtrain.training.passes import count_targets, pass_loss, split_passes


class TokenLevelEvaluation(Trainer):
    """The part of ``PatchTrainer`` that evaluates; it uses the trainer's plan, stage and record."""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Token-level loss on validation text, and at patch level the patch loss too.

        The loss is over windows of the context length, spread evenly over the text, of about
        ``args.eval_tokens`` tokens; the processes share them. It is in nats per token and the same
        for the same weights in every stage and plan.
        """
        tokens = self.eval_tokens
        if eval_dataset is not None:
            tokens = stream(eval_dataset, self.plan.spec)
        if tokens is None or len(tokens) < 2:
            raise UsageError("there is no validation text to evaluate on")
        begin = time.perf_counter()
        with self._at_token_level():
            loss = self._global_mean(*self._token_loss(tokens))
        metrics = {"loss": loss}
        if self.bytes_per_token and eval_dataset is None:
            metrics["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        # Of text whose tokens were moved about there would be a loss, and it would mean nothing.
        plain = self._stage is not None and self._stage.ablation not in REARRANGED
        if self._handle is not None and self._stage is not None and plain:
            length = self._stage.sequence_tokens
            if len(tokens) >= length:
                starts = spread_starts(len(tokens), self._eval_wanted(), length)
                metrics["patch_loss"] = self._patch_loss(tokens, starts, self._stage)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        if self.record is not None:
            self.record.pause(time.perf_counter() - begin)
        if eval_dataset is None:
            self.log(dict(metrics))
        else:  # no point of the run's curve, which is on one text
            Trainer.log(self, dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            metrics,
        )
        return metrics

    def _eval_wanted(self) -> int:
        # 1 % of the positions at every 5 % of the steps: some 7 % on top of the training time.
        derived = min(max(self.plan.total_positions // 100, 8_192), 131_072)
        return self.args.eval_tokens or derived

    def _share(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """This process's part of ``rows``, and how many of them count.

        All processes get equally many, so that sharded models stay in step: the last ones get rows
        that are run and not counted.
        """
        share = -(-len(rows) // self.plan.processes)
        part = rows[self.args.process_index * share :][:share]
        filling = np.repeat(rows[:1], share - len(part), axis=0)
        return np.concatenate([part, filling]), len(part)

    def _token_loss(self, tokens: np.ndarray | Pieces | AlignedDocuments) -> tuple[float, int]:
        """Summed next-token loss on this process's rows of the text, and their targets."""
        length = self.plan.context_length
        if not isinstance(tokens, AlignedDocuments):
            # A window's last token is only predicted, its first only read.
            windows, counted = self._share(spread(tokens, self._eval_wanted(), length + 1))
            return rows_loss(self.model, windows, counted=counted)
        starts = spread_starts(len(tokens), self._eval_wanted(), length)
        starts, counted = self._share(starts if len(starts) else np.zeros(1, dtype=np.int64))
        rows = tokens.read(starts, length, 1)
        rows["labels"][counted:] = IGNORE
        return packed_loss(self.model, rows)

    @torch.no_grad()
    def _patch_loss(
        self, tokens: np.ndarray | Pieces | AlignedDocuments, starts: np.ndarray, stage: Stage
    ) -> float:
        """The stage's own loss on whole sequences."""
        starts, counted = self._share(starts)
        rows = read_rows(tokens, starts, stage.sequence_tokens, stage.patch_size)
        if counted < len(starts):
            rows.setdefault("labels", rows["input_ids"].copy())[counted:] = IGNORE
        inputs = {name: torch.from_numpy(value) for name, value in rows.items()}
        total = targets = 0.0
        with evaluating(self.model):
            for part in split_passes(inputs, self.plan.pass_rows(stage)):
                count = count_targets(part, stage)
                with self.accelerator.autocast():
                    loss = pass_loss(self.model, self._prepare_inputs(part), stage, count, count)
                total += float(loss) * count
                targets += count
        return self._global_mean(total, targets)

    def _global_mean(self, total: float, count: float) -> float:
        pair = torch.tensor([total, count], dtype=torch.float64).to(
            self.args.device, torch.float64 if self.args.device.type != "mps" else torch.float32
        )
        total, count = self.accelerator.reduce(pair, "sum").tolist()
        return total / count if count else math.nan

    @contextlib.contextmanager
    def _at_token_level(self) -> Iterator[None]:
        if self._handle is None:
            yield
            return
        with self._handle.paused():
            yield


def stream(dataset: Any, spec: PlanSpec) -> np.ndarray | Pieces | AlignedDocuments:
    """What a user trains on as one stream of tokens, its documents apart if asked for."""
    if spec.documents == "separate":
        return aligned_documents(dataset, spec.alignment())
    return token_array(dataset)
