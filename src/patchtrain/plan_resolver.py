"""From what a user asks for to whole steps: the arithmetic and the checks behind ``plan.py``.

Standard library only. Problems are collected, so that a user sees all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from patchtrain.errors import UsageError, nearest, one_line
from patchtrain.patch_settings import (
    LARGEST,
    is_number,
    is_whole,
    list_problems,
    patches_of,
    position_scale,
    problems,
    shown,
    switch_problems,
    tail,
    used,
)
from patchtrain.plan import CHOICES, Plan, PlanSpec, warmup_steps
from patchtrain.presets import PATCH_FRACTION, STEP_FRACTION
from patchtrain.stage import ABLATIONS, Part, Stage, largest_divisor, rows_fit, slot_weights

_MOST = {"patch_size": 1024, "context_length": 10**9, "tokens_per_step": 10**12, "steps": 10**9}
_MOST_EPOCHS = 10_000
_STAGE_KEYS = ("patch_size", "share", "context_length", "ablation")


class Resolver:
    """Resolves one spec; collects problems so that a user sees all of them at once."""

    def __init__(
        self, spec: PlanSpec, store_tokens: int | None, device_sequences: int, processes: int
    ) -> None:
        self.spec = spec.filled()
        self.store_tokens = store_tokens
        self.device_sequences = device_sequences
        self.processes = processes
        self.problems: list[str] = []
        self.block = 0

    def alignment(self) -> int:
        """The least common multiple of the stages' patch sizes; 1 where they make no sense."""
        self._check_values()
        multiple = math.lcm(*(part.patch_size for part in self._parts()))
        return 1 if self.problems or multiple > LARGEST else multiple

    def longest_context(self) -> int | None:
        """The positions that the widest stage spans, scaled; None where they make no sense.

        A model made for the plan has as many; of a given one ``last_position`` is enough.
        """
        self._check_values()
        parts, kind = self._parts(), self.spec.position_scale
        if self.problems:
            return None
        scales = [position_scale(kind, part.patch_size, part.ablation) for part in parts]
        return max(map(Part.span, parts, scales))

    def plan(self) -> Plan:
        self._check_values()
        if self.spec.epochs is not None and self.store_tokens is None:
            self.problems.append(
                "epochs needs a store whose tokens can be counted; prepare it, or give tokens or "
                "steps, and epochs as null"
            )
        parts = self._parts()
        self.problems += list_problems(self.spec, {part.patch_size for part in parts})
        self._stop_if_problems()
        lengths = [part.sequence_tokens for part in parts]
        self.block = math.lcm(self.spec.context_length, *lengths)
        if self.block > LARGEST:
            self.problems.append(
                "the patch sizes have so large a common multiple that no store has a block of it"
            )
            self._stop_if_problems()
        sequences = self._sequences_per_step(parts)
        self._stop_if_problems()
        steps = self._steps(parts, sequences)
        self._stop_if_problems()
        plan = self._build(parts, sequences, steps)
        self._check_schedule(plan)
        self._check_store(plan)
        self._stop_if_problems()
        return plan

    def _stop_if_problems(self) -> None:
        if self.problems:
            raise UsageError("the plan does not fit: " + "; ".join(self.problems))

    def _check_values(self) -> None:
        spec, bad = self.spec, self.problems.append
        for key, allowed in CHOICES.items():
            value = getattr(spec, key)
            is_open = key == "rows" and value is None and spec.wants_size()
            if value not in allowed and not is_open:
                bad(f"{key} '{one_line(value, 40)}' is not one of {', '.join(allowed)}")
        for key in ("context_length", "tokens_per_step", "patch_size", "steps", "tokens"):
            value = getattr(spec, key)
            if self._is_asked(key) and (not is_whole(value) or value < 1):
                bad(f"{key} must be a whole number of at least 1, not {shown(value)}")
            elif self._is_asked(key) and value > (most := _MOST.get(key, LARGEST)):
                bad(f"{key} must be at most {most:,}, not {shown(value)}")
        for key in ("patch_fraction", "step_fraction", "decay_fraction", "min_rate"):
            value = getattr(spec, key)
            if self._is_asked(key) and not (is_number(value) and 0 <= value <= 1):
                bad(f"{key} must lie between 0 and 1, not {shown(value)}")
        for key in ("epochs", "max_epochs"):
            value = getattr(spec, key)
            if self._is_asked(key) and not (is_number(value) and 0 < value <= _MOST_EPOCHS):
                bad(f"{key} must be above 0 and at most {_MOST_EPOCHS:,}, not {shown(value)}")
        warmup = spec.warmup_steps
        if warmup is not None and (not is_whole(warmup) or warmup < 0):
            bad(f"warmup_steps must be a whole number of at least 0, not {shown(warmup)}")
        if is_whole(spec.context_length) and spec.context_length == 1:
            bad("context_length must be at least 2: the first position predicts the second")
        given = [key for key in ("steps", "tokens", "epochs") if getattr(spec, key) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "none is given"
            out = "; null takes one out" if given else ""
            bad(f"the length of the run is one of steps, tokens or epochs; {what}{out}")
        if spec.patch_fraction is not None and spec.step_fraction is not None:
            bad(
                "give patch_fraction (of the tokens) or step_fraction (of the steps), not both; "
                "null takes one out"
            )
        self.problems += problems(spec)
        if self.device_sequences < 1 or self.processes < 1:
            bad("sequences per device and processes must be at least 1")

    def _is_asked(self, key: str) -> bool:
        """Whether a key has to hold a value: None is one only where it means 'not given'."""
        return getattr(self.spec, key) is not None or getattr(PlanSpec, key, "required") is not None

    def _parts(self) -> list[Part]:
        """The stages, each with its relative number of steps, not yet scaled."""
        spec = self.spec
        if spec.stages is not None:
            if not isinstance(spec.stages, Sequence) or isinstance(spec.stages, str):
                self.problems.append(
                    f"stages is a list of patch sizes and shares, not {shown(spec.stages)}"
                )
                return []
            if spec.patch_fraction is not None or spec.step_fraction is not None:
                self.problems.append(
                    "give a list of stages or a fraction, not both; null takes one out"
                )
            parts = [part for item in spec.stages if (part := self._part(item))]
            total = sum(part.share for part in parts)
            if not spec.stages:
                self.problems.append("the list of stages is empty")
            elif not self.problems and abs(total - 1) > 0.01:
                self.problems.append(f"the shares of the stages sum to {total:g}, not 1")
            of_steps = spec.share_of == "steps"
        else:
            of_tokens, fraction = spec.patch_fraction, spec.step_fraction
            if of_tokens is None and fraction is None:
                of_tokens = PATCH_FRACTION.get(str(spec.preset))
                fraction = STEP_FRACTION.get(str(spec.preset))
            of_steps = fraction is not None
            fraction = fraction if of_steps else of_tokens
            if spec.patch_size is None and fraction:
                self.problems.append(
                    f"patch_size is missing: preset {spec.preset} takes it from the size of the "
                    f"model, which is not known here; give it, or call for_model(parameters) first"
                )
            pairs: list[tuple[Any, Any]] = []
            if not self.problems:
                pairs = [(spec.patch_size, fraction), (1, 1 - fraction)]  # type: ignore[operator]
            if spec.patch_size == 1 and pairs:
                pairs = [(1, 1.0)]
            parts = [
                Part(patch_size, share, T := self._row(patch_size), None, self._tail(patch_size, T))
                for patch_size, share in pairs
                if share > 0
            ]
        if of_steps or self.problems:
            return parts
        # Shares of the tokens. A step reads as many at any patch size K, or K times as many.
        return [
            replace(part, share=part.share / (self._read_share(part) * (
                1 if spec.hold == "tokens" else part.tokens_per_position
            )))
            for part in parts
        ]  # fmt: skip

    def _read_share(self, part: Part) -> float:
        """What a stage's steps read on average, of what one without ``token_share`` reads."""
        if not self.spec.token_share:
            return 1.0
        return 1 - self.spec.token_share * (1 - 1 / part.tokens_per_position)

    def _row(self, patch_size: int) -> int:
        """The positions of a row of patches, unless its stage says otherwise."""
        T = self.spec.context_length
        if patch_size == 1 or self.spec.rows != "tokens" or self.problems:
            return T
        if rows_fit(T, patch_size):
            return T // patch_size
        self.problems.append(
            f"rows: tokens needs a context_length that patches divide into two or more, and "
            f"{T} is not such a multiple of {patch_size}"
        )
        return T

    def _tail(self, patch_size: int, context_length: int) -> int:
        share = 0.0 if self.problems else self.spec.hybrid_share
        return tail(share, patch_size, context_length)

    def _part(self, item: Any) -> Part | None:
        """One stage of a free list: ``(patch_size, share)`` or a mapping."""
        own_length, ablation = None, None
        if isinstance(item, Mapping):
            unknown = [key for key in item if key not in _STAGE_KEYS]
            for key in unknown:
                self.problems.append(f"stage: no key '{key}'{nearest(key, list(_STAGE_KEYS))}")
            if unknown:
                return None
            own_length = item.get("context_length")
            ablation = item.get("ablation")
            item = (item.get("patch_size"), item.get("share"))
        if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
            self.problems.append(f"a stage is a patch_size and a share, not {shown(item)}")
            return None
        patch_size, share = item
        if not is_whole(patch_size) or not 1 <= patch_size <= _MOST["patch_size"]:
            self.problems.append(
                f"patch_size must be a whole number from 1 to {_MOST['patch_size']:,}, "
                f"not {shown(patch_size)}"
            )
        elif not is_number(share) or not 0 < share <= 1:
            self.problems.append(f"the share of a stage must lie in (0, 1], not {shown(share)}")
        elif own_length is not None and not (
            is_whole(own_length) and 2 <= own_length <= _MOST["context_length"]
        ):
            self.problems.append(
                f"the context_length of a stage must be a whole number of at least 2, not "
                f"{shown(own_length)}"
            )
        elif self._can_ablate(ablation, patch_size):
            context_length = self._row(patch_size) if own_length is None else own_length
            length = self._tail(patch_size, context_length)
            return Part(patch_size, float(share), context_length, ablation, length)
        return None

    def _can_ablate(self, ablation: Any, patch_size: int) -> bool:
        """Whether a stage can have this ablation, if any."""
        if ablation is None:
            return True
        spec = self.spec
        if not isinstance(ablation, str) or ablation not in ABLATIONS:
            known = ", ".join(ABLATIONS)
            self.problems.append(f"the ablation {shown(ablation)} of a stage is not one of {known}")
            return False
        moved = spec.phase == "random" and ablation != "input-only"
        for lacks, what in (
            (patch_size == 1, "patches: a patch_size above 1"),
            (spec.documents == "separate", "documents: mixed"),
            (spec.token_share, "token_share: 0"),
            (spec.hybrid_share, "hybrid_share: 0"),
            (moved, "phase: fixed; it has no patches to move"),
        ):
            if lacks:
                self.problems.append(f"ablation {ablation} needs {what}")
                return False
        return True

    def _sequences_per_step(self, parts: list[Part]) -> list[int]:
        """Sequences of one step in each stage, over all processes."""
        spec = self.spec
        held = spec.hold == "tokens"
        # With tokens held, a patch-level step has K times fewer sequences: K must divide too.
        widest = math.lcm(*(part.patch_size for part in parts)) if held else 1
        context = math.lcm(spec.context_length, *(part.context_length for part in parts))
        mixed = [part.sequence_tokens for part in parts if part.tail and held]
        unit = math.lcm(widest * context, *mixed) * self.processes
        if spec.tokens_per_step % unit:
            factors = [f"context_length {context}"]
            factors += [f"patch size {widest}"] * (widest > 1)
            if mixed:
                factors = [f"hybrid sequences of {max(mixed)} tokens and {' x '.join(factors)}"]
            factors += [f"{self.processes} processes"] * (self.processes > 1)
            low = spec.tokens_per_step // unit * unit
            near = f"{low} or {low + unit}" if low else f"{unit}"
            self.problems.append(
                f"tokens_per_step {spec.tokens_per_step} is not a multiple of {unit} "
                f"({' x '.join(factors)}); the nearest that fits is {near}"
            )
        return [
            spec.tokens_per_step // (part.sequence_tokens if held else part.context_length)
            for part in parts
        ]

    def _steps(self, parts: list[Part], sequences: list[int]) -> list[int]:
        """Whole steps a stage; the last stage takes what rounding leaves."""
        spec = self.spec
        step_tokens: list[float] = [
            count * part.sequence_tokens for part, count in zip(parts, sequences, strict=True)
        ]
        relative = [part.share for part in parts]
        if spec.steps is not None:
            total = float(spec.steps)
        else:
            tokens = spec.tokens
            if tokens is None:
                assert spec.epochs is not None
                assert self.store_tokens is not None
                # A stage ends inside a block at worst; the rest of that block is not read.
                blocks = int(spec.epochs * (self.store_tokens // self.block)) - len(parts) + 1
                tokens = blocks * self.block
            if spec.epochs is None:  # else what counts is the part of the store set aside
                step_tokens = [
                    tokens_of_step * self._read_share(part)
                    for tokens_of_step, part in zip(step_tokens, parts, strict=True)
                ]
            mean = sum(r * t for r, t in zip(relative, step_tokens, strict=True)) / sum(relative)
            total = tokens / mean
        if spec.steps is None:
            # Never read more than was asked for: whole steps of each stage, rounded down.
            steps = [int(total * share / sum(relative) + 1e-9) for share in relative]
        else:
            # Rounding the running sum keeps every stage within one step of its share.
            ends = [round(total * part / sum(relative)) for part in accumulate(relative)]
            steps = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        if sum(steps) > _MOST["steps"]:
            self.problems.append(f"the run would have {sum(steps):,} steps; make the steps larger")
        for part, count in zip(parts, steps, strict=True):
            if count < 1:
                self.problems.append(
                    f"the stage with patch size {part.patch_size} would have no step of the "
                    f"{sum(steps):,} that there are; train longer, make the step smaller "
                    f"(tokens_per_step is {self.spec.tokens_per_step:,}) or drop the stage"
                )
        return steps

    def _build(self, parts: list[Part], sequences: list[int], steps: list[int]) -> Plan:
        spec = self.spec
        block = self.block
        positions = [
            count * part.context_length for part, count in zip(parts, sequences, strict=True)
        ]
        pass_sequences = largest_divisor(
            math.gcd(*(count // spec.context_length // self.processes for count in positions)),
            self.device_sequences,
        )
        stages: list[Stage] = []
        step = first_block = 0
        for index, (part, count, length) in enumerate(zip(parts, sequences, steps, strict=True)):
            weights = spec.slot_weights or "uniform"
            if isinstance(weights, list | tuple) and len(weights) != part.patch_size:
                weights = "uniform"  # a list of weights is for the stages of its own length
            blocks = -(-length * count * part.sequence_tokens // block)
            stages.append(
                Stage(
                    index=index,
                    patch_size=part.patch_size,
                    first_step=step,
                    steps=length,
                    context_length=part.context_length,
                    sequences_per_step=count,
                    first_block=first_block,
                    blocks=blocks,
                    slot_weights=slot_weights(part.patch_size, weights),
                    ablation=part.ablation,
                    **patches_of(used(spec), part.patch_size, part.ablation),
                    tail=part.tail,
                    token_steps=int(spec.token_share * length + 1e-9) * (part.patch_size > 1),
                )
            )
            step += length
            first_block += blocks
        epochs = None
        if self.store_tokens is not None:
            store_blocks = self.store_tokens // block
            epochs = first_block / store_blocks if store_blocks else math.inf
        return Plan(spec, tuple(stages), block, pass_sequences, self.processes, epochs)

    def _check_schedule(self, plan: Plan) -> None:
        spans = (
            [(stage.name, stage.steps) for stage in plan.stages]
            if self.spec.schedule_scope == "stage"
            else [("the run", plan.total_steps)]
        )
        for name, steps in spans:
            warmup = warmup_steps(self.spec, steps)
            if warmup >= steps > 1:
                self.problems.append(f"{warmup} warm-up steps leave none of the {steps} of {name}")
        self.problems += switch_problems(self.spec, plan.stages)

    def _check_store(self, plan: Plan) -> None:
        if plan.epochs is None:
            return
        if self.store_tokens is not None and self.store_tokens < plan.block_tokens:
            self.problems.append(
                f"the store has {self.store_tokens:,} training tokens, less than one block of "
                f"{plan.block_tokens:,}; use more text or a shorter context"
            )
        elif self.spec.epochs is None and plan.epochs > self.spec.max_epochs + 1e-9:
            fitting = int(plan.total_steps * self.spec.max_epochs / plan.epochs)
            self.problems.append(
                f"the run reads {plan.total_tokens:,} tokens and the store has "
                f"{self.store_tokens:,} ({plan.epochs:.2f} epochs); use more text, shorten it "
                f"(steps={max(fitting, 1)} at most), or allow "
                f"max_epochs={math.ceil(plan.epochs * 10) / 10:g}"
            )
