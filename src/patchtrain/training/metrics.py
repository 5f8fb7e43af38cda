"""What the trainer tells the run's record (``record.py``): its start, and each event's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from patchtrain.data.documents import AlignedDocuments
from patchtrain.data.unigram import unigram_entropy
from patchtrain.stage import Stage
from patchtrain.training.record import RunRecord
from patchtrain.training.switching import compiles


class WritingMetrics(Trainer):
    """The part of ``PatchTrainer`` that counts and writes; it uses the trainer's plan and stage.

    Only the first process has a ``record``.
    """

    record: RunRecord | None

    def begin_record(self) -> None:
        """Start the run's record, or on resuming go on with the one that is there."""
        if self.record is not None:
            self._unigram = unigram_entropy(self.batches.tokens)
            self.record.start(self._describe(), self.state.global_step)
            self._logged = (*self._counted(), self.record.seconds)

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self.args.run_name or Path(self.args.output_dir).resolve().name,
            "status": "running",
            "seed": self.args.seed,
            "model": {"class": self.identity["model"]["class"], **self.size.to_dict()},
            "flops_per_position": self.size.flops_per_position(self.plan.context_length).total,
            "learning_rate": self.args.learning_rate,
            "compiled": compiles(),
            "loss_backend": {"name": self.backend.name, "reason": self.backend.reason},
            "plan": self.size.plan_dict(self.plan),
            "identity": self.identity,
            "documents": self.documents(),
            "unigram_entropy": self._unigram,
        }

    def documents(self) -> dict[str, Any]:
        """How documents are read, and what keeping them separate adds to the training tokens."""
        tokens = self.batches.tokens
        if not isinstance(tokens, AlignedDocuments):
            return {"read": "mixed"}
        return {"read": "separate", "stream_tokens": len(tokens), "added_tokens": tokens.added}

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """FLOPs of this process's share of a step, by positions: a patch costs one token."""
        stage = self.plan.stage_at(self.state.global_step).level_at(self.state.global_step)
        position = self.size.flops_per_position(stage.context_length, stage.tokens_per_position)
        return stage.positions_per_step / self.plan.processes * position.total

    def _counted(self) -> tuple[int, int]:
        step = self.state.global_step
        return self.plan.tokens_before(step), self.plan.positions_before(step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds stage, tokens, throughput and what patches learned; writes metrics."""
        if "loss" in logs:
            logs["loss"] = self.window.drain()
            stage = self.plan.stage_at(self.state.global_step - 1)
            tokens, positions = self._counted()
            logs.update(stage=stage.index, patch_size=stage.patch_size, tokens=tokens)
            if self.record is not None:
                before_tokens, before_positions, before = self._logged
                seconds = self.record.seconds
                elapsed = max(seconds - before, 1e-9)
                logs["tokens_per_s"] = (tokens - before_tokens) / elapsed
                logs["positions_per_s"] = (positions - before_positions) / elapsed
                self._logged = (tokens, positions, seconds)
                if stage.patch_size > 1:
                    logs["beyond_unigram"] = self._unigram - logs["loss"]
            self._write("train", logs, stage)
        elif "eval_loss" in logs:
            if not self._guard.evaluated(logs["eval_loss"]):
                return
            self._write("eval", {key.removeprefix("eval_"): value for key, value in logs.items()})
        super().log(logs, start_time)

    def _write(self, event: str, values: Mapping[str, Any], stage: Stage | None = None) -> None:
        if self.record is None:
            return
        stage = stage or self._stage or self.plan.stage_at(self.state.global_step)
        tokens, positions = self._counted()
        self.record.event(
            {
                **{key: value for key, value in values.items() if key != "epoch"},
                "event": event,
                "step": self.state.global_step,
                "stage": stage.index,
                "patch_size": stage.patch_size,
                "tokens": tokens,
                "positions": positions,
                "flops": self.size.flops(self.plan, self.state.global_step).total,
                "seconds": self.record.seconds,
                "data_seconds": self.record.data_seconds,
            }
        )
