"""What a run is, so that a resumed one is the same: refuse what cannot be honoured.

Every checkpoint holds the run's identity, a mapping of what must be equal when it is resumed. A
difference is refused and named, unless it is one of ``MAY_CHANGE`` and the user says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from patchtrain.errors import UsageError
from patchtrain.patch_settings import STAGE_UNUSED, UNUSED
from patchtrain.plan import Plan

# What ``--allow-change`` takes, and what each means.
MAY_CHANGE = {
    "learning_rate": "the peak learning rate; the plan's schedule goes on at the new height",
    "logging": "how often to log, evaluate and save, and what to keep",
    "processes": "the number of processes; data order and loss stay the same",
}
_LOGGING = (
    "logging_strategy", "logging_steps", "logging_first_step", "eval_strategy", "eval_steps",
    "eval_tokens", "save_strategy", "save_steps", "save_total_limit", "keep_every", "report_to",
)  # fmt: skip
_OPTIMIZER = (
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay",
    "max_grad_norm", "bf16", "neftune_noise_alpha",
)  # fmt: skip
# Of a model's config: what its own weights and outputs do not depend on.
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "use_cache", "architectures")
_SAMPLED = 1 << 26  # tokens of an array that its digest is taken over


def identity(
    args: Any, model: Any, plan: Plan, seeds: Mapping[str, int], data: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be equal when a run is resumed; JSON types.

    Args:
        args: the run's ``PatchConfig``.
        model: a transformers model, or any module.
        plan: the resolved plan.
        seeds: by name.
        data: ``data_identity`` of what is trained on.
    """
    config = model.config.to_dict() if hasattr(model, "config") else {}
    sizes = sum(parameter.numel() for parameter in model.parameters())
    return {
        "store": data["store"],
        "tokenizer": data["tokenizer"],
        "plan": _plan_identity(plan),
        "model": {
            "class": type(model).__name__,
            "parameters": sizes,
            **{name: _plain(value) for name, value in config.items()
               if name not in _NOT_OF_THE_MODEL},
        },
        "seed": dict(seeds),
        "optimizer": {
            **{name: _plain(getattr(args, name)) for name in _OPTIMIZER},
            **({"muon_rate": args.muon_rate} if args.muon_rate else {}),
        },
        "learning_rate": args.learning_rate,
        "logging": {name: _plain(getattr(args, name)) for name in _LOGGING},
        "processes": plan.processes,
    }  # fmt: skip


def data_identity(dataset: Any, tokens: Any) -> dict[str, Any]:
    """The fingerprints of what is trained on: a store's own, or a digest of the tokens."""
    if hasattr(dataset, "fingerprint") and hasattr(dataset, "tokenizer_fingerprint"):
        return {"store": dataset.fingerprint, "tokenizer": dataset.tokenizer_fingerprint}
    return {"store": _sample_digest(tokens), "tokenizer": None}


def check_allowed(names: Iterable[str], resume: str = "yes") -> set[str]:
    """The names as a set, if they are of ``MAY_CHANGE`` and the run is one to be resumed."""
    found = {name.strip() for name in names}
    for name in sorted(found - MAY_CHANGE.keys()):
        raise UsageError(f"{name} cannot be allowed to change, only {', '.join(MAY_CHANGE)} can")
    if found and resume == "no":
        raise UsageError("--allow-change says what may differ from the run so far; add --resume")
    return found


def refuse_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str], where: str
) -> None:
    """Refuse to go on with a run that has become another.

    Args:
        before: the identity in the checkpoint.
        now: the identity of what is to go on.
        allowed: names of ``MAY_CHANGE`` that may differ.
        where: the checkpoint, for the message.

    Raises:
        UsageError: naming every difference and what to do.
    """
    allowed = check_allowed(allowed)
    changed = {
        key: found
        for key in sorted(before.keys() | now.keys())
        if key not in allowed and (found := list(_differences(key, before.get(key), now.get(key))))
    }
    if not changed:
        return
    lines = "; ".join(line for found in changed.values() for line in found)
    could = [key for key in changed if key in MAY_CHANGE]
    if could == list(changed):
        way = f"allow it with --allow-change {','.join(could)}"
    else:
        way = "resume it as it was, or start another run with out=FOLDER"
    raise UsageError(f"{where} was made by another run: {lines}; {way}")


def _differences(name: str, before: Any, now: Any) -> Iterable[str]:
    """A line for every value that differs, by its path in the identity."""
    if before == now:
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        # Another version of transformers may know more or fewer keys of a model's config.
        keys = before.keys() & now.keys() if name == "model" else before.keys() | now.keys()
        for key in sorted(keys):
            yield from _differences(f"{name}.{key}", before.get(key), now.get(key))
    else:
        yield f"{name} is {_short(now)} and was {_short(before)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}..."


def _plan_identity(plan: Plan) -> dict[str, Any]:
    """The plan without what follows from the number of processes, and without unused settings.

    A run that does not use a setting is the same whether or not its version knew of it.
    """
    values = _used(plan.to_dict(), UNUSED)
    for name in ("processes", "pass_sequences", "passes", "epochs"):
        values.pop(name)
    stages = values.pop("stages")
    named = {f"stage {stage['index'] + 1}": _used(stage, STAGE_UNUSED) for stage in stages}
    return {key: _plain(value) for key, value in (values | named).items()}


def _used(values: Mapping[str, Any], unused: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if name not in unused or value != unused[name]
    }


def _plain(value: Any) -> Any:
    """JSON types only, as they are when read back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(getattr(value, "value", value))  # enums of transformers, dtypes


def _sample_digest(tokens: Any) -> str:
    """SHA-256 over the tokens and where their documents end; of very many, over pieces of them."""
    digest = hashlib.sha256()
    arrays = [getattr(tokens, "tokens", tokens)]
    if hasattr(tokens, "offsets"):
        arrays.append(tokens.offsets)
    for array in arrays:
        digest.update(f"{len(array)} ".encode())
        pieces = 1 if len(array) <= _SAMPLED else 64
        size = min(len(array), _SAMPLED) // pieces
        for number in range(pieces):
            begin = number * (len(array) - size) // max(pieces - 1, 1)
            digest.update(np.ascontiguousarray(array[begin : begin + size], dtype="<i8").tobytes())
    return digest.hexdigest()
