"""The plan of a run: which patch size, for how many steps, on which tokens, at what rate.

``PlanSpec`` is what a user asks for; ``PlanSpec.resolve`` turns it into a ``Plan``, a list of
``Stage`` with whole steps and disjoint token ranges, or names everything that does not fit.
Stages are data: patch size 8, 4, 2, 1 is a longer list, nothing more.

Standard library only. Words: a *sequence* of a stage with patch size K has K * T raw tokens and
costs T positions, T being the context length (with ``rows: tokens`` T and T / K); the *tokens per
step* asked for are those of a token-level step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from patchtrain.errors import UsageError, nearest
from patchtrain.patch_settings import POOL_ORDERS, POSITION_SCALES, averaged_steps
from patchtrain.presets import DEFAULT, PRESETS, by_size, decided_by
from patchtrain.stage import SlotWeights, Stage, largest_divisor, rows_fit

CHOICES = {
    "preset": tuple(PRESETS),
    "hold": ("tokens", "compute"),
    "rows": ("positions", "tokens"),
    "schedule": ("cosine", "wsd", "constant"),
    "schedule_scope": ("stage", "run"),
    "optimizer_at_switch": ("reset", "carry", "second"),
    "share_of": ("tokens", "steps"),
    "documents": ("mixed", "separate"),
    "phase": ("fixed", "random"),
    "position_scale": POSITION_SCALES,
    "pool_order": POOL_ORDERS,
}


@dataclass(frozen=True)
class PlanSpec:
    """What a user asks for. All but the context length and one total has a default.

    Give the stages either as ``patch_size`` with ``patch_fraction`` (lambda, of the tokens) or
    ``step_fraction`` (r, of the steps), token level following; or as a free list ``stages`` of
    ``(patch_size, share)``; as mappings they may also say a ``context_length`` of their own and an
    ``ablation`` (``stage.ABLATIONS``), both to study and not to train. Give the length of the run
    as one of ``steps``, ``tokens`` (raw tokens over all stages) or ``epochs`` (passes over the
    store). What stands below a key is its row in docs/reference/recipe.md, which
    ``python tools/reference.py`` writes.
    """

    context_length: int
    """T, the positions the transformer sees at token level, and in all stages unless `rows` says
    otherwise."""
    tokens_per_step: int
    """Tokens of a token-level step, a multiple of T; gradient accumulation follows from it, in each
    stage its own."""
    preset: str = DEFAULT
    """Whose convention it is; decides what stands under *The presets* unless it is given."""
    patch_size: int | None = None
    """K of the first stage."""
    patch_fraction: float | None = None
    """lambda, the share of the *tokens* read at patch level; 0 is plain training."""
    step_fraction: float | None = None
    """r, the share of the *steps* at patch level; give one of the two, or the preset does."""
    stages: Sequence[Any] | None = None
    """Instead: a list such as `[[8, 0.2], [4, 0.2], [1, 0.6]]`, patch size and share; or
    [as mappings](../recipes.md#stages-to-study)."""
    share_of: str = "tokens"
    """What the shares in `stages` are shares of."""
    steps: int | None = None
    """Length of the run: one of `steps`, `tokens` and `epochs`."""
    tokens: int | None = None
    """Or raw tokens over all stages; `360B` is short for 360,000,000,000 (K, M, B, T)."""
    epochs: float | None = None
    """Or passes over the store."""
    documents: str = "mixed"
    """Whether sequences run on over the end of a document, as in both papers, or
    [keep to one](../recipes.md#documents)."""
    max_epochs: float = 1.0
    """How often a run sized by steps or tokens may read the store."""
    # What the preset decides, unless given here:
    hold: str | None = None
    """What a patch-level step has as much of as a token-level step: tokens or compute."""
    rows: str | None = None
    """What a row of patches has as many of as a row of tokens: `positions` (T, and K times the
    tokens), or `tokens` (T, in T / K positions). Where `patch_size` or `stages` is given:
    `positions`."""
    schedule: str | None = None
    """Of the learning rate, whose peak is `training.learning_rate`; all warm up first, and `wsd` is
    warm-up, stable, decay."""
    schedule_scope: str | None = None
    """What the schedule runs over: each stage anew, or the whole run."""
    optimizer_at_switch: str | None = None
    """Optimizer state from one stage to the next; `second`: AdamW's second moments are carried, the
    first begin at zero."""
    slot_weights: SlotWeights | None = None
    """Of the K targets: `uniform`, `power` (1/i), `auto` (uniform below K = 8), or K numbers."""
    # What neither paper has; unused unless given (``patch_settings.py``).
    embedding_scale: str | float = "none"
    """What the mean of a patch's K embeddings is multiplied with: `none`, `sqrt` (sqrt(K), so that
    its norm is about a token's) or a number. At K = 1 always 1."""
    pool_weights: SlotWeights = "uniform"
    """Of the K embeddings in their mean: `uniform`, `recent` (each token weighs twice as much as
    the one before it) or a list of K numbers, used in the stages with that K."""
    pool_order: str = "none"
    """`rotate`: before the mean, the dimensions of each of the K embeddings are rolled on by D / K
    for every token that follows it in the patch, so that the order of the tokens can be told; the
    last one is not moved."""
    patch_rate: float = 1.0
    """The learning rate of the patch-level stages, as a share of what the schedule says."""
    rewarm_steps: int = 0
    """After each switch the learning rate rises linearly from 0 to the schedule's over so many
    steps, whatever the schedule and its scope; where a stage has its own warm-up, the two are
    multiplied."""
    phase: str = "fixed"
    """`random`: at patch level each sequence begins 0 to K - 1 tokens later in the store, drawn
    from the seed, so that patches are not always cut at the same places. It then ends with as many
    tokens of its neighbour. Needs `documents: mixed`."""
    position_scale: str = "none"
    """`patch`: at patch level positions count by K, so that two patches are as far apart as their
    tokens at token level. Of a model with rotary positions, others are refused, and within its
    `max_position_embeddings` (the tokens of the longest row unless `model.config` says another).
    Needs `documents: mixed`."""
    token_share: float = 0.0
    """Share of the steps of each patch-level stage that are done at token level instead, spread
    evenly. Such a step has the same positions and reads one token at each, from the beginning of
    its sequences; the rest of them is not read. Not with `training.torch_compile`."""
    hybrid_share: float = 0.0
    """Share of the positions of each patch-level sequence that read single tokens, after the
    patches: a compressed past and a recent one in one pass. A patch predicts the K tokens after it,
    single ones too; a token predicts the next. All targets weigh the same; with other
    `slot_weights` a token's weighs as the first of a patch. Rounded to sixteenths of the
    positions, or to whole ones where they are no multiple of 16. No token-level stage need follow.
    Needs `documents: mixed`; with `hold: tokens`, a `tokens_per_step` that such sequences
    divide."""
    average_at_switch: float = 0.0
    """Share of a stage's last steps whose mean weights, kept in fp32, the next stage begins with;
    0: with the last weights, which `stage-1/` has in any case. The optimizer's state goes by
    `optimizer_at_switch`."""
    freeze_head_steps: int = 0
    """For so many steps after each switch the output head, and an input embedding that is tied to
    it, stays as it is while the rest adapts."""
    freeze_body_steps: int = 0
    """The same for everything but head and input embedding; give one of the two."""
    head_scale_at_switch: float = 1.0
    """What the logits are multiplied with at each switch, by scaling the head's weights. Of a head
    that is not tied to the input embedding; others are refused."""
    # The learning rate's shape:
    warmup_steps: int | None = None
    """Steps in which the rate rises to its peak. Default: 2 % of the schedule, at most 2,000."""
    decay_fraction: float = 0.1
    """Share of the schedule that decays, for `wsd`."""
    min_rate: float = 0.0
    """Where `cosine` and `wsd` end, as a share of the peak."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanSpec:
        """A spec from a recipe's ``plan`` section; unknown and missing keys are all named.

        ``tokens`` may be short for a large number: ``360B``.
        """
        known = [field.name for field in fields(cls)]
        problems = [f"no key '{key}'{nearest(key, known)}" for key in values if key not in known]
        problems += [
            f"'{key}' is missing"
            for key in ("context_length", "tokens_per_step")
            if values.get(key) is None
        ]
        if problems:
            raise UsageError("plan: " + "; ".join(problems))
        return cls(**{**values, "tokens": _count(values.get("tokens"))})

    def filled(self) -> PlanSpec:
        """The spec with what its preset decides filled in."""
        decided = decided_by(self.preset)
        if not self.wants_size():  # whoever names a K gets rows as in both papers
            decided = {"rows": "positions", **decided}
        open_ones = [key for key in decided if getattr(self, key) is None]
        return replace(self, **{key: decided[key] for key in open_ones})

    def wants_size(self) -> bool:
        """Whether K, and rows with it, are still open and go by the model's size."""
        none = self.stages is not None or 0 in (self.patch_fraction, self.step_fraction)
        return self.patch_size is None and "patch_size" not in decided_by(self.preset) and not none

    def for_model(self, parameters: int) -> PlanSpec:
        """The spec with K and rows for a model of so many parameters, where its preset decides."""
        if not self.wants_size():
            return self
        K, rows = by_size(parameters)
        if not rows_fit(self.context_length, K):
            rows = "positions"
        return replace(self, patch_size=K, rows=rows if self.rows is None else self.rows)

    def longest_context(self) -> int | None:
        """For how many positions a model must have room: T, but in studies.

        None where nothing sensible is asked for, which ``resolve`` says.

        Raises:
            UsageError: it goes by K, and K by the size of the model that has yet to be made.
        """
        if self.position_scale == "patch":
            if self.wants_size():
                raise UsageError("plan: position_scale patch needs a patch_size")
            from patchtrain.plan_resolver import Resolver

            return Resolver(self, None, 1, 1).longest_context()
        items = self.stages if isinstance(self.stages, list | tuple) else ()
        own = [item.get("context_length") for item in items if isinstance(item, Mapping)]
        lengths = [length for length in (self.context_length, *own) if isinstance(length, int)]
        return max(lengths, default=None)

    def alignment(self) -> int:
        """What separate documents begin at multiples of: the least common multiple of all K."""
        from patchtrain.plan_resolver import Resolver

        return Resolver(self, None, 1, 1).alignment()

    def resolve(
        self,
        *,
        store_tokens: int | None = None,
        device_sequences: int = 1,
        processes: int = 1,
    ) -> Plan:
        """Whole steps and disjoint token ranges, for a store, a device and a process count.

        Args:
            store_tokens: training tokens the store has, with their padding where documents are
                separate (``AlignedDocuments``); None if not known yet (no epochs then).
            device_sequences: most sequences a device takes in one pass. The passes of all stages
                have the same number of sequences, the largest that fits all of them.
            processes: data-parallel processes that share a step.

        Raises:
            UsageError: naming every problem found, one a line.
        """
        from patchtrain.plan_resolver import Resolver

        return Resolver(self, store_tokens, device_sequences, processes).plan()


@dataclass(frozen=True)
class Plan:
    """A resolved plan. ``stage_at`` and ``rate_at`` are pure functions of the step."""

    spec: PlanSpec  # with the preset's values filled in
    stages: tuple[Stage, ...]
    block_tokens: int  # unit in which the token stream is shuffled and shared out
    pass_sequences: int  # sequences of T positions in one device pass, equal in all stages
    processes: int
    epochs: float | None  # passes over the store, None if its size was not given

    @property
    def context_length(self) -> int:
        return self.spec.context_length

    @property
    def total_steps(self) -> int:
        return self.stages[-1].last_step

    @property
    def total_tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def total_positions(self) -> int:
        return sum(stage.positions for stage in self.stages)

    @property
    def compute_ratio(self) -> float:
        """Positions over tokens: the cost against token-level training on the same tokens.

        With equal tokens a step this is ``lambda / K + 1 - lambda`` (2407.12665, section 2).
        """
        return self.total_positions / self.total_tokens

    def stage_at(self, step: int) -> Stage:
        """The stage that step ``step`` (from 0) belongs to; the last one beyond the end."""
        return next((stage for stage in self.stages if step < stage.last_step), self.stages[-1])

    def passes(self, stage: Stage) -> int:
        """Device passes (micro-batches) of one step of ``stage`` on each process."""
        return stage.sequences_per_step // (self.pass_rows(stage) * self.processes)

    def pass_rows(self, stage: Stage) -> int:
        """Sequences of one device pass of ``stage``.

        Those are ``pass_sequences``; of a stage with a context length of its own as many as have
        the same number of positions.
        """
        most = self.pass_sequences * self.context_length // stage.context_length
        return largest_divisor(stage.sequences_per_step // self.processes, max(most, 1))

    def tokens_before(self, step: int) -> int:
        """Raw tokens that the steps before ``step`` have read."""
        return sum(stage.tokens_in(self.steps_in(stage, step)) for stage in self.stages)

    def positions_before(self, step: int) -> int:
        """Positions that the steps before ``step`` have computed."""
        return sum(self.steps_in(stage, step) * stage.positions_per_step for stage in self.stages)

    @staticmethod
    def steps_in(stage: Stage, step: int) -> int:
        """How many of the steps before ``step`` are of ``stage``."""
        return min(max(step - stage.first_step, 0), stage.steps)

    def is_averaged(self, step: int) -> bool:
        """Whether the weights after step ``step`` are part of the mean that the next stage gets."""
        stage = self.stage_at(step)
        averaged = averaged_steps(self.spec.average_at_switch, stage.steps)
        return stage is not self.stages[-1] and step >= stage.last_step - averaged

    def frozen_at(self, step: int) -> list[str]:
        """What step ``step`` leaves as it is: ``"head"``, ``"body"``, or nothing."""
        stage = self.stage_at(step)
        asked = {"head": self.spec.freeze_head_steps, "body": self.spec.freeze_body_steps}
        into = step - stage.first_step
        return [part for part, steps in asked.items() if stage.index > 0 and into < steps]

    def rate_at(self, step: int) -> float:
        """The learning rate of step ``step`` as a share of the peak, in [0, 1].

        Above 1 only at patch level, by ``patch_rate``.
        """
        stage = self.stage_at(step)
        into = step - stage.first_step + 1  # the last of the ramp's steps has the whole rate
        ramp = into / self.spec.rewarm_steps if 0 < into < self.spec.rewarm_steps else 1.0
        rate = self._scheduled_rate(step) * (ramp if stage.index > 0 else 1.0)
        return rate if stage.patch_size == 1 else rate * self.spec.patch_rate

    def _scheduled_rate(self, step: int) -> float:
        """The rate before what ``rewarm_steps`` takes off it."""
        if self.spec.schedule_scope == "stage":
            stage = self.stage_at(step)
            step, total = step - stage.first_step, stage.steps
        else:
            total = self.total_steps
        warmup = warmup_steps(self.spec, total)
        if step < warmup:
            return (step + 1) / warmup
        low = self.spec.min_rate
        if self.spec.schedule == "cosine":
            progress = (step - warmup) / max(total - warmup, 1)
            return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        if self.spec.schedule == "wsd":
            decay = max(1, round(self.spec.decay_fraction * total))
            left = max(total - step, 0)
            return 1.0 if left >= decay else low + (1 - low) * left / decay
        return 1.0

    def warnings(self) -> list[str]:
        """What is allowed and known to end badly, in words for the user.

        Where patches are followed by too little token level, published runs lost. How much is too
        little depends on what a step holds: if its tokens, quality fell fast with less than a
        quarter of the tokens left (2407.12665, equal data). If its compute, K times more is read
        at patch level, and the gain began to shrink with less than half of the steps left; it was
        gone with a tenth (2605.06546, equal compute, K = 2 to 16).
        """
        patched = [stage for stage in self.stages if stage.patch_size > 1]
        if not patched:
            return []
        if any(stage.tail for stage in patched):
            return []  # single tokens are learned all along
        steps = self.total_steps - patched[-1].last_step
        if steps == 0:
            return [
                "the plan ends at patch level: the model never learns to predict single tokens, "
                "and its token-level loss will be bad"
            ]
        tokens_held = self.spec.hold == "tokens"  # then equal shares of steps and of tokens
        least = 0.25 if tokens_held else 0.5
        if steps + 0.5 >= least * self.total_steps:  # whole steps are half a step off
            return []
        left = f"only {steps / self.total_steps:.0%} of the"
        if tokens_held:
            return [
                f"{left} tokens are left for the token level; in 2407.12665 quality fell fast "
                f"where it had less than a quarter"
            ]
        return [
            f"{left} steps are left for the token level; in 2605.06546 the best runs gave it 60 to "
            f"80%, and with less than half the gain shrank, to nothing at 10%"
        ]

    def to_dict(self) -> dict[str, Any]:
        """What ``run.json`` records; plain JSON types."""
        spec = {name: value for name, value in asdict(self.spec).items() if value is not None}
        return {
            **spec,
            "stages": [stage.to_dict() for stage in self.stages],
            "block_tokens": self.block_tokens,
            "pass_sequences": self.pass_sequences,
            "processes": self.processes,
            "passes": [self.passes(stage) for stage in self.stages],
            "total_steps": self.total_steps,
            "total_tokens": self.total_tokens,
            "total_positions": self.total_positions,
            "compute_ratio": self.compute_ratio,
            "epochs": self.epochs,
        }


def _count(value: Any) -> Any:
    """``360B`` as the number it stands for; anything else as it is, to be judged elsewhere."""
    sizes = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    if isinstance(value, str) and (
        found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([KMBT])", value)
    ):
        return round(float(found[1]) * sizes[found[2]])
    return value


def warmup_steps(spec: PlanSpec, total: int) -> int:
    """Warm-up steps of a schedule of ``total`` steps (the run or a stage, by its scope)."""
    return spec.warmup_steps if spec.warmup_steps is not None else min(2000, max(1, total // 50))
