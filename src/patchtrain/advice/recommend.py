"""Which preset, patch size and share of patches to train with, why, and when not to.

``advise`` is for someone who has a model size and a budget; ``plan_warnings`` looks at a plan that
is made already. Both say what they know from where, and where they only extrapolate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from patchtrain.advice import fits, points, ranges, reasons, small
from patchtrain.advice.fits import Estimate
from patchtrain.advice.ranges import short
from patchtrain.advice.small import Choice
from patchtrain.errors import UsageError, one_line
from patchtrain.plan import Plan
from patchtrain.presets import DECIDED, decided_by
from patchtrain.stage import rows_fit

Scarce = Literal["data", "compute"]
_LARGEST = 10**18
# What of a recipe's plan may contradict an advice: a plan has one share and one length.
_OTHERWISE = ("patch_fraction", "step_fraction", "stages", "steps", "tokens", "epochs")
# With these a patch-level step reads less than is advised; no advice is drawn from such runs.
_WHOLE = {"token_share": 0, "hybrid_share": 0}


@dataclass(frozen=True)
class Advice:
    """What to train with, and what is known about it.

    Exactly one of ``patch_fraction`` (lambda, of the tokens) and ``step_fraction`` (r, of the
    steps) is set, as the preset has it; a patch size of 1 is token level only. ``gain`` is in
    nats a token against token-level training on ``held_equal``: "data", the same tokens at
    ``cost_ratio`` of the compute; or "compute", the same compute reading ``tokens_read``. It is
    None where too little is known for a number.

    ``alternative`` is a second plan, where what is published speaks neither for nor against it:
    patches that nobody tried there, behind token level; or token level, behind such patches.
    """

    parameters: int
    tokens: int
    scarce: Scarce
    preset: str
    patch_size: int
    patch_fraction: float | None
    step_fraction: float | None
    held_equal: str
    gain: float | None
    interval: tuple[float, float] | None
    cost_ratio: float
    tokens_read: int
    plan: dict[str, Any]  # keys of PlanSpec
    reasons: list[str]
    extrapolates: list[str]
    warnings: list[str]
    alternative: dict[str, Any] | None = None  # keys of PlanSpec

    @property
    def overrides(self) -> str:
        """The plan as ``patchtrain train RECIPE`` takes it, and out with what contradicts it."""
        return overrides_of(self.plan)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        other = None if self.alternative is None else overrides_of(self.alternative)
        values = {**asdict(self), "overrides": self.overrides, "alternative_overrides": other}
        return {**values, "interval": None if self.interval is None else list(self.interval)}


def overrides_of(plan: dict[str, Any]) -> str:
    """A plan, all of it, as overrides of any recipe's."""
    others = {**dict.fromkeys((*_OTHERWISE, *DECIDED), "null"), **_WHOLE}
    found = {**plan, **{key: value for key, value in others.items() if key not in plan}}
    return " ".join(f"plan.{key}={value}" for key, value in found.items())


def advise(
    parameters: int,
    tokens: int,
    scarce: Scarce,
    *,
    context_length: int | None = None,
    tokens_per_step: int | None = None,
    processes: int = 1,
) -> Advice:
    """What to train a model of ``parameters`` with.

    Args:
        parameters: of the whole model, shared ones once.
        tokens: the budget. With scarce data: the tokens there are to read (those read again count
            again). With scarce compute: the tokens that token-level training could read with the
            compute there is.
        scarce: ``"data"``: no more text can be had, compute can be spent; ``"compute"``: the
            compute is what there is, more text can be had.
        context_length: T, to be put into the plan.
        tokens_per_step: of a token-level step, to be put into the plan; with it, the number of
            steps is compared with the measured ones too. Where the advised patches do not divide
            it, the plan has the nearest that they do, and a warning says so.
        processes: data-parallel ones, which share a step.

    Raises:
        UsageError: a count that is no whole number from 1 to 10**18, or another ``scarce``.
    """
    context = {"context_length": context_length, "tokens_per_step": tokens_per_step}
    counts = {"parameters": parameters, "tokens": tokens, "processes": processes}
    given = {key: value for key, value in context.items() if value is not None}
    for name, value in {**counts, **given}.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise UsageError(
                f"{name} must be a whole number from 1 to 10**18, not {one_line(repr(value), 40)}"
            )
    if scarce not in get_args(Scarce):
        raise UsageError(f"scarce is data or compute, not {one_line(repr(scarce), 40)}")
    build = _for_scarce_data if scarce == "data" else _for_scarce_compute
    return _in_whole_patches(build(parameters, tokens, given), processes)


def _in_whole_patches(advice: Advice, processes: int) -> Advice:
    """With steps of the nearest ``tokens_per_step`` that all stages can have."""
    plan, other = _fitting(advice.plan, processes), advice.alternative
    warnings = list(advice.warnings)
    if plan != advice.plan:
        warnings.append(
            f"steps of {advice.plan['tokens_per_step']} tokens do not divide into sequences of "
            f"such patches; the plan has tokens_per_step {plan['tokens_per_step']}, the nearest "
            f"that do"
        )
    other = None if other is None else _fitting(other, processes)
    return replace(advice, plan=plan, alternative=other, warnings=warnings)


def _fitting(plan: dict[str, Any], processes: int) -> dict[str, Any]:
    if "context_length" not in plan or "tokens_per_step" not in plan:
        return plan
    # Where a step holds tokens, one of patches has K times fewer sequences.
    held = decided_by(plan["preset"])["hold"] == "tokens"
    unit = plan["context_length"] * (plan["patch_size"] if held else 1) * processes
    return {**plan, "tokens_per_step": max(1, round(plan["tokens_per_step"] / unit)) * unit}


def _for_scarce_data(parameters: int, tokens: int, given: dict[str, int]) -> Advice:
    """Patches first on the same tokens, only where that is known to end lower."""
    model, ratio = fits.equal_data(), tokens / parameters
    covered = ranges.of_table("equal_data", points.equal_data_pairs())
    steps = _steps(tokens, given)
    far = covered.is_far(parameters, tokens, steps)
    usual = None if far else model.gain(ratio)
    least = float(model.fractions[0])  # the smallest lambda with numbers
    less = None if far else model.gain(ratio, least)
    patch_size: int = points.published()["equal_data"]["patch_size"]
    extrapolates = covered.beyond(parameters, tokens, steps)
    said: list[str] = [reasons.line(model, ratio, usual), reasons.line_elsewhere()]
    warnings: list[str] = []
    fraction, gain = 0.0, None
    other: float | None = None  # lambda of the alternative
    if near := _own_at_data(parameters, tokens, steps):
        said += reasons.own_at_data(near)
        warnings.append(
            f"no published run on equal data is near this one; {reasons.outcome_at_data(near)}; "
            f"token level only is the safe choice"
        )
    elif usual is None:
        warnings.append(
            "no run on equal data is known that is near this one; token level only is the safe "
            "choice"
        )
    elif less is not None and less.low > 0:
        fraction, gain = least, less
        said += [reasons.smaller_fraction(patch_size, least),
                 reasons.stated("patch_size_equal_data")]  # fmt: skip
    else:
        warnings.append(_too_little_text(ratio, usual))
        if covered.ratio.holds(ratio):
            untested = float(reasons.finding("patch_fraction_equal_data")["best"])
            said += [reasons.stated("patch_fraction_equal_data"),
                     reasons.stated("patch_size_equal_data")]  # fmt: skip
            # As for small models: token level where the nearest runs lost, else no gain is given.
            if usual.value <= 0:
                other = untested
            else:
                fraction, other = untested, 0.0
                extrapolates.append(
                    f"patch fraction: no number is published at lambda = {fraction:g}"
                )
                warnings.append(
                    f"whether lambda = {fraction:g} gains here is not known; token level only is "
                    f"the safe choice"
                )
        else:
            warnings.append(
                f"token level only: no published run had so few; the least is "
                f"{model.lowest:,.0f} tokens for each parameter"
            )
        said.append(reasons.reading_again())

    def plan(share: float) -> dict[str, Any]:
        size = patch_size if share else 1
        return {"preset": "paper", "patch_size": size, "patch_fraction": share, **given,
                "tokens": tokens}  # fmt: skip

    size = patch_size if fraction else 1
    return Advice(
        parameters=parameters,
        tokens=tokens,
        scarce="data",
        preset="paper",
        patch_size=size,
        patch_fraction=fraction,
        step_fraction=None,
        held_equal="data",
        gain=(None if gain is None else gain.value) if fraction else 0.0,
        interval=(None if gain is None else (gain.low, gain.high)) if fraction else (0.0, 0.0),
        cost_ratio=reasons.cost(size, fraction),
        tokens_read=tokens,
        plan=plan(fraction),
        reasons=[*said, reasons.SINGLE_SEEDS],
        extrapolates=extrapolates,
        warnings=warnings,
        alternative=None if other is None else plan(other),
    )


def _own_at_data(parameters: int, tokens: int, steps: float | None = None) -> list[Choice]:
    """The own comparisons on the same text nearest to a small model's run, if any is near."""
    if parameters >= ranges.boundary() or ranges.of_own("data").is_far(parameters, tokens, steps):
        return []
    return small.nearest(parameters, tokens, points.own("data"))


def _too_little_text(ratio: float, usual: Estimate) -> str:
    losing = usual.value < 0
    return (
        f"{ratio:,.0f} tokens for each parameter are few: on the same text, patches first at "
        f"lambda = 2/3 is expected to {'lose' if losing else 'gain'} {abs(usual.value):.3f} nats "
        f"against token level only (gain {reasons.interval(usual)})"
        + ("" if losing else ", too little to be sure that it gains")
    )


def _for_scarce_compute(parameters: int, tokens: int, given: dict[str, int]) -> Advice:
    """Patches first in the same compute, on more text."""
    model, ratio, steps = fits.equal_compute(), tokens / parameters, _steps(tokens, given)
    is_small = parameters < ranges.boundary()
    table = ranges.of_table("equal_compute", points.equal_compute_pairs())
    covered = ranges.of_own() if is_small else table
    far = covered.is_far(parameters, tokens, steps)
    preset = "patchtrain" if is_small else "superposition"
    warnings: list[str] = []
    plan: dict[str, Any] = {"preset": preset}
    gain: Estimate | None
    if is_small:
        T = given.get("context_length")
        fitting = [
            item
            for item in points.own()
            if T is None or item.rows != "tokens" or rows_fit(T, item.patch_size)
        ]
        choice = small.best(parameters, tokens, fitting)
        K, r = choice.patch_size, choice.share
        gain = None if far else choice.estimate
        said = reasons.own_runs(choice)
        if choice.estimate is None:
            warnings.append(reasons.texts_disagree(choice))
        if choice.mean <= 0:
            K, r, gain = 1, 0.0, Estimate(0.0, 0.0, 0.0)
        else:
            plan["rows"] = choice.rows
    else:
        K, r = model.patch_size, model.step_fraction
        gain = None if far else model.gain(ratio, K, r)
        said = reasons.equal_compute(model, ratio, gain)
    if far:
        warnings.append("no run is known that is near this one; try it at a small scale first")
    times = 1 - r + r * K
    read = round(tokens * times)
    if K > 1:
        once = "" if is_small else ", each once"  # the own runs read their text several times
        said.append(
            f"at equal compute this reads {times:.3g} times the text, {short(read)} tokens{once}; "
            f"if there is less, it is data that is scarce"
        )
    return Advice(
        parameters=parameters,
        tokens=tokens,
        scarce="compute",
        preset=preset,
        patch_size=K,
        patch_fraction=None,
        step_fraction=r,
        held_equal="compute",
        gain=None if gain is None else gain.value,
        interval=None if gain is None else (gain.low, gain.high),
        cost_ratio=1.0,
        tokens_read=read,
        plan={**plan, "patch_size": K, "step_fraction": r, **given, "tokens": read},
        reasons=said,
        extrapolates=covered.beyond(parameters, tokens, steps),
        warnings=warnings,
    )  # fmt: skip


def _steps(tokens: int, given: dict[str, int]) -> float | None:
    return tokens / given["tokens_per_step"] if "tokens_per_step" in given else None


def plan_warnings(parameters: int, plan: Plan) -> list[str]:
    """What the measured losses say against a plan for a model of this size, in words.

    ``Plan.warnings`` has what a plan says by itself (too little token level); this is about too
    little text for each parameter. It compares with token-level training on the same text.

    Raises:
        UsageError: ``parameters`` below 1.
    """
    if parameters < 1:
        raise UsageError(f"parameters must be a whole number of at least 1, not {parameters}")
    read = plan.total_tokens
    share = sum(stage.tokens for stage in plan.stages if stage.patch_size > 1) / read
    # Up to the lambda that was best on the same text there is nothing to warn of.
    if share <= reasons.finding("patch_fraction_equal_data")["best"] + 0.01:
        return []
    if near := _own_at_data(parameters, read):
        return [
            f"if text is what limits you, token level only is the safe choice: on the same text, "
            f"{reasons.outcome_at_data(near)}"
        ]
    if ranges.of_table("equal_data", points.equal_data_pairs()).is_far(parameters, read):
        return [
            f"no comparison on the same text is known near {short(parameters)} parameters and "
            f"{short(read)} tokens; if text is what limits you, token level only is the safe choice"
        ]
    model, ratio = fits.equal_data(), read / parameters
    measured = min(max(share, float(model.fractions[0])), float(model.fractions[-1]))
    gain = model.gain(ratio, measured)
    if gain is None or gain.value >= 0:
        return []
    where = (
        ""
        if abs(measured - share) < 0.005
        else f" at lambda = {measured:.2g}, the nearest measured"
    )
    return [
        f"{ratio:,.0f} tokens for each parameter are few: on the same text, token level only is "
        f"expected to end {-gain.value:.3f} nats lower{where} ({points.cite('patch')}; patches "
        f"first at lambda = 2/3 lost below about {model.break_even:,.0f}). That is a loss if text "
        f"is what limits you, not if compute is"
    ]
