"""What training costs: floating-point operations by position, and with them time, money and energy.

The unit is a *position*, a place where the transformer computes a hidden state. At patch level a
position stands for K tokens and costs what one token costs, which is the whole point.

Standard library only. Forward and backward pass of one position, in floating-point operations::

    body        6 * matrix parameters * uses            a multiply-add forward, two backward
    attention   6 * layers * (score width + value width) * reach
    head        6 * V * D                               tied or not
    embedding   2 * K * D                               the mean of K embeddings, and back
    loss        5 * V + 3 * K                           softmax and its gradient, K targets

Of a mixture of experts, only the experts that a position is sent to count. ``uses`` is how often
a position passes a matrix on average: 1, but for towers that text does not pass, blocks that run in
cycles or are shared by layers, and what runs without gradients (a third). ``reach`` is how many
positions one attends to on average: (T + 1) / 2 in a causal context of T, less in a window, and
(c + 1) / 2 in chunks of c. A kernel that computes the whole square does up to twice this part. The
last two lines are not matrix products; next to the others they are nothing, and they are the only
ones that depend on K. Not counted: norms, activation functions, rotary embeddings, the scan of a
state-space layer, the scores of an indexer, the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from patchtrain.devices import Device
from patchtrain.plan import Plan
from patchtrain.stage import Stage

# Of what a device can do at most. Published runs lie between 0.2 (small models) and 0.5.
ASSUMED_UTILISATION = 0.4


@dataclass(frozen=True)
class AttentionLayers:
    """Layers whose attention costs the same."""

    layers: float  # a run without gradients counts a third
    score_width: int  # query heads times the size of one, over which scores are summed
    value_width: int  # query heads times the size of a value
    window: int | None = None  # positions that a sliding window lets through; None: all before
    chunk: int | None = None  # positions of a chunk, within which alone one attends

    def reach(self, context_length: int) -> float:
        """How many positions one attends to, itself included, on average over the context."""
        if self.chunk:
            chunks, rest = divmod(context_length, self.chunk)
            pairs = chunks * self.chunk * (self.chunk + 1) / 2 + rest * (rest + 1) / 2
            return pairs / context_length
        T, window = context_length, min(self.window or context_length, context_length)
        return (window * (window + 1) / 2 + (T - window) * window) / T

    def flops(self, reach: float) -> float:
        """Forward and backward, of one position that attends to ``reach``."""
        return 6.0 * self.layers * (self.score_width + self.value_width) * reach


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, forward and backward, by where they are spent."""

    body: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    embedding: float = 0.0
    loss: float = 0.0

    @property
    def total(self) -> float:
        return self.body + self.attention + self.head + self.embedding + self.loss

    def __mul__(self, count: float) -> Flops:
        return Flops(*(getattr(self, field.name) * count for field in fields(self)))

    def __add__(self, other: Flops) -> Flops:
        names = [field.name for field in fields(self)]
        return Flops(*(getattr(self, name) + getattr(other, name) for name in names))

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that its cost depends on; ``sizing.model_size`` reads them off one."""

    parameters: int  # all, shared ones once
    active_parameters: int  # those one position meets: of a mixture's experts its own
    body_parameters: int  # outside input embedding and head
    matrix_parameters: int  # of the body, those in matrix products, of experts the active ones
    head_parameters: int  # V * D (and a bias), whether tied or not
    hidden_size: int  # D, of the embeddings
    vocab_size: int  # V, rows of the head
    attention: tuple[AttentionLayers, ...]
    uses: float = 1.0  # of a matrix parameter, on average: more in cycles, 0 in a tower

    def flops_per_position(self, context_length: int, patch_size: float = 1) -> Flops:
        """Of one position in a context of T positions, each of K tokens (on average)."""
        return Flops(
            body=6.0 * self.matrix_parameters * self.uses,
            attention=sum(part.flops(part.reach(context_length)) for part in self.attention),
            head=6.0 * self.head_parameters,
            embedding=2.0 * patch_size * self.hidden_size,
            loss=5.0 * self.vocab_size + 3.0 * patch_size,
        )

    def flops(self, plan: Plan, steps: int | None = None) -> Flops:
        """Of the first ``steps`` steps of a plan, over all processes; None: of all."""
        steps = plan.total_steps if steps is None else steps
        return sum(
            (self.flops_of_stage(stage, plan.steps_in(stage, steps)) for stage in plan.stages),
            Flops(),
        )

    def flops_of_stage(self, stage: Stage, steps: int) -> Flops:
        """Of the first ``steps`` steps of a stage, over all processes."""
        singles = stage.token_steps_in(steps)
        patched = self.flops_per_position(stage.context_length, stage.tokens_per_position)
        found = patched * ((steps - singles) * stage.positions_per_step)
        if singles:
            token = self.flops_per_position(stage.context_length)
            found = found + token * (singles * stage.positions_per_step)
        return found

    def ratio_at_equal_data(self, plan: Plan) -> float:
        """What a plan costs against token-level training on the same tokens.

        With equal tokens a step this is ``lambda / K + 1 - lambda`` (2407.12665, section 2), but
        for what depends on K and on how long rows of patches are.
        """
        token = self.flops_per_position(plan.context_length)
        return self.flops(plan).total / (token.total * plan.total_tokens)

    def plan_dict(self, plan: Plan) -> dict[str, Any]:
        """A plan as plain JSON types; here its ``compute_ratio`` counts all operations."""
        return {**plan.to_dict(), "compute_ratio": self.ratio_at_equal_data(plan)}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rates:
    """What the arithmetic needs to know beyond model and plan. Money and energy are optional."""

    device: Device | None = None
    devices: int = 1
    utilisation: float = ASSUMED_UTILISATION  # of the device's peak, of the operations done
    precision: str = "bf16"  # whose peak counts: bf16 or fp32
    measured: tuple[float, ...] = ()  # or: seconds of one step of each stage, as measured
    price: float | None = None  # of a device for an hour, in any currency
    watts: float | None = None  # of a device; None: what its maker rates it at
    kwh_price: float | None = None  # of a kilowatt-hour

    def peak(self) -> float | None:
        """FLOP/s of one device at most; None where there is no device or no figure for it."""
        return self.device.peak(self.precision) if self.device else None


@dataclass(frozen=True)
class StageCost:
    """One stage of the bill. Counts are over all devices."""

    stage: Stage
    flops: Flops
    recomputed: float  # operations done twice because of gradient checkpointing
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "patch_size": self.stage.patch_size,
            "steps": self.stage.steps,
            "tokens_per_step": self.stage.tokens_per_step,
            "positions_per_step": self.stage.positions_per_step,
            "tokens": self.stage.tokens,
            "positions": self.stage.positions,
            "flops": self.flops.to_dict(),
            "recomputed_flops": self.recomputed,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Bill:
    """What a plan costs."""

    size: ModelSize
    plan: Plan
    rates: Rates
    stages: tuple[StageCost, ...]

    @property
    def flops(self) -> Flops:
        return sum((cost.flops for cost in self.stages), Flops())

    @property
    def seconds(self) -> float | None:
        return _sum(cost.seconds for cost in self.stages)

    @property
    def device_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds / 3600 * self.rates.devices

    @property
    def money(self) -> float | None:
        return _product(self.device_hours, self.rates.price)

    @property
    def kwh(self) -> float | None:
        """At what the devices are rated at (or ``Rates.watts``): without hosts and cooling."""
        watts = self.rates.watts
        if watts is None and self.rates.device is not None:
            watts = self.rates.device.watts
        return _product(self.device_hours, None if watts is None else watts / 1000)

    @property
    def energy_money(self) -> float | None:
        return _product(self.kwh, self.rates.kwh_price)

    @property
    def utilisation(self) -> float | None:
        """The share of the devices' peak: assumed, or what measured steps come to."""
        peak = self.rates.peak()
        if not self.rates.measured:
            return self.rates.utilisation
        if peak is None or not self.seconds:
            return None
        done = self.flops.total + sum(cost.recomputed for cost in self.stages)
        return done / (self.seconds * self.rates.devices * peak)

    @property
    def ratio_at_equal_data(self) -> float:
        """Cost against token-level training on the same tokens."""
        return self.size.ratio_at_equal_data(self.plan)

    @property
    def tokens_at_equal_compute(self) -> float:
        """How many tokens token-level training would read at the same cost."""
        return self.flops.total / self._token_level().total

    @property
    def bytes_of_ids(self) -> int:
        """Of the token ids to be read, as a store keeps them."""
        return self.plan.total_tokens * (2 if self.size.vocab_size <= 2**16 else 4)

    def _token_level(self) -> Flops:
        return self.size.flops_per_position(self.plan.context_length)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; seconds, FLOP, hours, and money in the currency of the price."""
        device = self.rates.device
        return {
            "model": self.size.to_dict(),
            "plan": self.size.plan_dict(self.plan),
            "device": device.to_dict() if device else None,
            "devices": self.rates.devices,
            "utilisation": self.utilisation,
            "measured": bool(self.rates.measured),
            "precision": self.rates.precision,
            "stages": [cost.to_dict() for cost in self.stages],
            "flops": self.flops.to_dict(),
            "seconds": self.seconds,
            "device_hours": self.device_hours,
            "money": self.money,
            "kwh": self.kwh,
            "energy_money": self.energy_money,
            "tokens": self.plan.total_tokens,
            "bytes_of_ids": self.bytes_of_ids,
            "ratio_at_equal_data": self.ratio_at_equal_data,
            "tokens_at_equal_compute": self.tokens_at_equal_compute,
        }


def bill(size: ModelSize, plan: Plan, rates: Rates, checkpointing: bool = False) -> Bill:
    """What ``plan`` costs for a model of ``size``.

    Args:
        size: the model.
        plan: the resolved plan; its processes should be ``rates.devices``.
        rates: the hardware and what it costs.
        checkpointing: whether activations are computed a second time in the backward pass, which
            adds one more forward pass of the body and takes its time.
    """
    costs = []
    for index, stage in enumerate(plan.stages):
        flops = size.flops_of_stage(stage, stage.steps)
        recomputed = (flops.body + flops.attention) / 3 if checkpointing else 0.0
        peak, seconds = rates.peak(), None
        if rates.measured:
            seconds = rates.measured[index] * stage.steps
        elif peak is not None:
            seconds = (flops.total + recomputed) / (peak * rates.utilisation * rates.devices)
        costs.append(StageCost(stage, flops, recomputed, seconds))
    return Bill(size, plan, rates, tuple(costs))


def _sum(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _product(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first * second
