"""The ablation that isolates the patch, at equal compute and equal effective sequence length.

A patch-level stage over K * T tokens has T positions. So it may gain because its sequences are
longer in text, because its positions are fewer than its tokens, because it reads patches, because
it predicts patches, or because the tokens of a patch are neighbours. Each arm takes one of these
away or has it alone; all train the same share of the compute in their first stage, and go on at
token level::

    tokens          token level throughout, T positions: the baseline
    tokens-short    first T / K positions: what a patch-level row of T tokens has in positions
    tokens-long     first K * T positions: what the patch-level row has in tokens
    patches         the method: first patches of K, T positions, K * T tokens
    patches-short   first patches of K over T tokens, T / K positions
    input-only      first patches in, one token out
    output-only     first tokens in, K tokens out
    mixup           first patches of K tokens from K random places
    shuffled        first patches of a shuffled row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchtrain.analysis.studies.asked import Base
from patchtrain.analysis.studies.equal import at_compute, check_data
from patchtrain.analysis.studies.study import Arm, Study
from patchtrain.errors import UsageError
from patchtrain.stage import ABLATIONS

BASELINE, METHOD = "tokens", "patches"


def ablation_study(base: Base, seeds: Sequence[int], about: Mapping[str, Any]) -> Study:
    """The study of ``base``, its arms at equal compute.

    Raises:
        UsageError: the lengths do not fit, or there is too little text.
    """
    K, T = base.patch_size, base.recipe["plan"]["context_length"]
    if T % K or T // K < 2:
        raise UsageError(
            f"an ablation cuts context_length {T} by the patch size: make it a multiple of {K}, "
            f"at least {2 * K}"
        )
    patch = {"patch_size": K}
    firsts: list[tuple[str, str, dict[str, Any] | None]] = [
        (BASELINE, f"tokens throughout, {T} positions", None),
        (
            "tokens-short",
            f"first tokens in rows of {T // K} positions",
            {"patch_size": 1, "context_length": T // K},
        ),
        (
            "tokens-long",
            f"first tokens in rows of {K * T} positions",
            {"patch_size": 1, "context_length": K * T},
        ),
        (METHOD, f"first patches of {K}: {T} positions, {K * T} tokens", patch),
        (
            "patches-short",
            f"first patches of {K} in rows of {T // K} positions, {T} tokens",
            {**patch, "context_length": T // K},
        ),
        *(
            (name, f"first {name}: {words}", {**patch, "ablation": name})
            for name, words in ABLATIONS.items()
        ),
    ]
    arms = tuple(
        Arm(
            name,
            words,
            base.stages(first),
            tuple(other for other in (BASELINE, METHOD) if other != name)
            if name not in (BASELINE, METHOD)
            else ()
            if name == BASELINE
            else (BASELINE,),
        )
        for name, words, first in firsts
    )
    study = Study(
        name="ablation",
        title="What a patch does: one part taken away at a time",
        recipe=_roomy(base, K * T),
        arms=arms,
        seeds=tuple(seeds),
        held_equal="compute",
        about={**about, "patch_size": K, "step_fraction": base.step_fraction},
    )
    study = at_compute(study, BASELINE)
    check_data(study)
    return study


def _roomy(base: Base, longest: int) -> dict[str, Any]:
    """The recipe with room for the longest rows in every arm's model, so that all are the same."""
    from transformers import AutoConfig

    recipe = {**base.recipe, "plan": {**base.recipe["plan"], "steps": base.steps}}
    config = dict(recipe["model"]["config"])
    if hasattr(AutoConfig.for_model(config["model_type"]), "max_position_embeddings"):
        known = config.get("max_position_embeddings")
        if isinstance(known, int) and known < longest:
            raise UsageError(
                f"model.config.max_position_embeddings {known} has no room for rows of {longest} "
                f"positions; leave it out"
            )
        config["max_position_embeddings"] = known or longest
    return {**recipe, "model": {**recipe["model"], "config": config}}
