"""The sentences of the advice: each names its source and what was measured there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from patchtrain.advice import held_out, points
from patchtrain.advice.fits import TWO_THIRDS, EqualCompute, EqualData, Estimate
from patchtrain.advice.points import Own
from patchtrain.advice.ranges import short
from patchtrain.advice.small import Choice

SINGLE_SEEDS = "every published number is a single run: no seed was repeated"
_SHARE = {"compute": "r", "data": "lambda"}
_OUTCOME = {True: "gained", False: "lost"}  # by whether all seeds did


def finding(name: str) -> dict[str, Any]:
    """A finding that a paper states without a table; ``text`` and sometimes numbers."""
    found: dict[str, Any] = points.published()["findings"][name]
    return found


def stated(name: str) -> str:
    found = finding(name)
    return f"{points.cite(found['source'])}, finding: {found['text']}"


def cost(patch_size: int, patch_fraction: float) -> float:
    """Compute on the same tokens against token level (2407.12665, section 2)."""
    return patch_fraction / patch_size + 1 - patch_fraction


def interval(estimate: Estimate) -> str:
    return f"{estimate.low:+z.3f} to {estimate.high:+z.3f}"


def line(model: EqualData, ratio: float, usual: Estimate | None) -> str:
    """The gain on the same tokens over tokens for each parameter."""
    text = (
        f"{points.cite('patch')}, 370M to 2.7B on 45B to 360B tokens, K = 4, lambda = 2/3, the "
        f"same tokens at half the compute: the gain grows with the logarithm of tokens for each "
        f"parameter and is zero near {model.break_even:,.0f}"
    )
    if usual is None:
        return text
    return f"{text}; {ratio:,.0f} give {usual.value:+z.3f} nats ({interval(usual)})"


def line_elsewhere() -> str:
    """How far the line was off where the setting was not that of its points."""
    errors = [prediction.error for prediction in held_out.equal_data_elsewhere()]
    better = sum(error > 0 for error in errors)
    return (
        f"that line on {len(errors)} comparisons of other settings (text read six times; another "
        f"paper's model, K and lambda): off by up to {max(map(abs, errors)):.3f} nats; in {better} "
        f"of them patches first did better than it says"
    )


def smaller_fraction(patch_size: int, fraction: float) -> str:
    """Why a lambda below 2/3, where text is ample for the model and compute can be spent."""
    base = points.published()["equal_data"]["patch_fraction"]
    families = points.fraction_gains()
    shifts = " and ".join(f"{gains[fraction] - gains[base]:.3f}" for gains in families.values())
    return (
        f"{points.cite('patch')}, 370M, {' and '.join(families)}: lambda = {fraction:g} ended "
        f"lower than 2/3 both times, by {shifts} nats; it costs {cost(patch_size, fraction):.3g} "
        f"of the compute, 2/3 costs {cost(patch_size, TWO_THIRDS):.2g}"
    )


def reading_again() -> str:
    values = points.published()["patch_fraction"]
    (family,) = (family for family in values["families"] if family["epochs"] > 1)
    gains = points.fraction_gains()[family["name"]]
    return (
        f"{points.cite('patch')}, 370M on {family['name']} "
        f"({family['unique_tokens'] / values['parameters']:,.0f} for each parameter): patches "
        f"first at lambda = 0.5 ended {gains[0.5]:.3f} nats lower than token level that read them "
        f"as often; where compute can be spent, reading the text again is a way to spend it"
    )


def equal_compute(model: EqualCompute, ratio: float, gain: Estimate | None) -> list[str]:
    """Why the reference K and r, and what they gain."""
    paper, K, r = points.cite("superposition"), model.patch_size, model.step_fraction
    measured = ", ".join(
        f"{pair.gain:.3f} ({short(pair.parameters)}, {short(pair.tokens)} tokens)"
        for pair in points.equal_compute_pairs()
    )
    here = "" if gain is None else f"; {ratio:,.0f} give {gain.value:.3f} ({interval(gain)})"
    fewer, more = model.shape(4, r), model.shape(8, r)
    rows = points.published()["not_equal_compute"]["rows"]
    same_data, mixture = (
        next(row for row in rows if row["held_equal"] == held) for held in ("data", "nothing")
    )
    return [
        f"{paper}, main table, K = {K}, r = {r:g}, equal compute: gains of {measured} nats; they "
        f"fall as a power of tokens for each parameter{here}",
        f"{paper}, sweep of 270M: flat around K = {K}, r = {r:g}; K = 4 keeps {fewer:.0%} of the "
        f"gain and reads {1 - r + 4 * r:.2g} times the text, K = 8 {more:.0%} and "
        f"{1 - r + 8 * r:.2g} times",
        f"{stated('patch_fraction_equal_compute')} (here {r * K / (r * K + 1 - r):.2g})",
        f"{paper}, 3B on the same {short(same_data['tokens'])} tokens: token level only ended at "
        f"{same_data['token_loss']:.3f}, patches first at {same_data['patch_loss']:.3f}: the gain "
        f"is one of compute, not of text",
        f"{paper}, 10B with 1B active, K = {mixture['patch_size']}, r = "
        f"{mixture['step_fraction']:.2g}: {mixture['patch_loss']:.3f} against "
        f"{mixture['token_loss']:.3f} in {mixture['patch_hours'] / mixture['token_hours']:.2f} of "
        f"the time; neither compute nor text was equal, so it is not in the curve",
        SINGLE_SEEDS,
    ]


def own_runs(choice: Choice) -> list[str]:
    """Why the small models' K, r and rows."""
    smallest = min(pair.parameters for pair in points.equal_compute_pairs())
    return [
        *(_own_run(item) for item in sorted(choice.found, key=lambda item: item.text)),
        f"no published model is smaller than {short(smallest)} parameters",
    ]


def own_at_data(choices: Sequence[Choice]) -> list[str]:
    """What small models did on the same text, by the nearest own comparisons."""
    found = [item for choice in choices for item in choice.found]
    return [_own_run(item) for item in sorted(found, key=lambda item: (item.text, item.patch_size))]


def outcome_at_data(choices: Sequence[Choice]) -> str:
    """The same in short, and where."""
    ended = ", ".join(
        f"{_OUTCOME[choice.mean > 0]} {abs(choice.mean):.3f} nats (K = {choice.patch_size})"
        for choice in sorted(choices, key=lambda choice: choice.patch_size)
    )
    item = choices[0].found[0]
    where = f"{item.text}, {item.parameters:,} parameters on {short(item.tokens)} tokens"
    return f"in the nearest own comparison ({where}) patches first {ended}"


def _own_run(item: Own) -> str:
    gains = ", ".join(f"{value:+z.3f}" for value in item.gains)
    rates = "one rate" if item.rates == 1 else f"{item.rates} rates, each arm at its best"
    return (
        f"results/evidence/{item.study}.json, {item.text}, {item.parameters:,} parameters on "
        f"{short(item.tokens)} tokens, equal {item.held_equal}, {rates}, K = {item.patch_size}, "
        f"{_SHARE[item.held_equal]} = {item.share:.3g}{rows_of(item.rows)}: {gains} nats"
    )


def rows_of(rows: str | None) -> str:
    """What to say of rows of patches that are not as long as those at token level."""
    return ", rows of as many tokens" if rows == "tokens" else ""


def texts_disagree(choice: Choice) -> str:
    """What to say where patches do not gain on each text."""
    by_outcome: dict[str, list[str]] = defaultdict(list)
    for item in sorted(choice.found, key=lambda item: item.text):
        gained = {value > 0 for value in item.gains}
        outcome = "gained or lost by the seed" if len(gained) > 1 else _OUTCOME[gained.pop()]
        ratio = short(item.tokens_per_parameter)
        by_outcome[outcome].append(f"{item.text} ({ratio} tokens for each parameter)")
    said = ", ".join(f"{outcome} on {', '.join(texts)}" for outcome, texts in by_outcome.items())
    then = "token level only, or" if choice.mean <= 0 else "no gain is given:"
    return (
        f"in the nearest runs patches {said}; {then} train both arms on your text, with several "
        f"seeds (patchtrain compare)"
    )
