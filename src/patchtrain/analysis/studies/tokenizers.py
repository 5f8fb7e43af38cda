"""One corpus under several tokenizers, each at token level and with patches, at equal compute.

A token of a large vocabulary holds more text, and its position costs more: the head is as wide as
the vocabulary. So at equal compute the arms have other numbers of steps and read other amounts of
text; the measure that they share is bits per byte on the same held-out documents. The context is
T tokens for each, which is more text where tokens are longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchtrain.analysis.studies.asked import Base, describe
from patchtrain.analysis.studies.equal import at_compute, check_data
from patchtrain.analysis.studies.study import Arm, Study
from patchtrain.data.store import TokenStore


@dataclass(frozen=True)
class Tokenized:
    """The corpus as one tokenizer has it."""

    name: str
    words: str
    store: TokenStore


def tokenizer_study(
    base: Base, corpora: Sequence[Tokenized], seeds: Sequence[int], about: Mapping[str, Any]
) -> Study:
    """The study of ``base`` on each of ``corpora``, its arms at equal compute.

    Raises:
        UsageError: there is too little text.
    """
    K, arms = base.patch_size, []
    first = f"{corpora[0].name}-tokens"
    for corpus in corpora:
        tokens, patches = f"{corpus.name}-tokens", f"{corpus.name}-patches"
        notes = describe(corpus.store)
        common = {"store": str(corpus.store.path)}
        against = () if tokens == first else (first,)
        words = f"{corpus.words}, {notes['vocab_size']:,} entries"
        arms.append(
            Arm(tokens, f"{words}: tokens throughout", {**common, **base.stages(None)},
                against, notes)
        )  # fmt: skip
        staged = base.stages({"patch_size": K})
        arms.append(
            Arm(patches, f"{words}: first patches of {K}", {**common, **staged}, (tokens,), notes)
        )
    study = Study(
        name="tokenizers",
        title="One corpus under several tokenizers",
        recipe={**base.recipe, "plan": {**base.recipe["plan"], "steps": base.steps}},
        arms=tuple(arms),
        seeds=tuple(seeds),
        held_equal="compute",
        about={**about, "patch_size": K, "step_fraction": base.step_fraction},
    )
    study = at_compute(study, first)
    check_data(study)
    return study
