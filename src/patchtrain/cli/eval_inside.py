"""``patchtrain eval --inside``: neurons, embeddings, loss by slot, and what the patches hold."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from patchtrain.cli import results
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.patch_settings import UNUSED, patches_of, position_scale
from patchtrain.stage import last_position

if TYPE_CHECKING:
    from patchtrain.analysis.patch_content import Text
    from patchtrain.evaluation.loading import LoadedModel

MAX_TOKENS = 131_072
_OF_PATCHES = tuple(patches_of({}, 1))  # settings of a plan that patches are read by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to look inside; what to read is said by the options of all evaluations."""
    group = parser.add_argument_group(
        "inside the model (--text, --store, --max-tokens and --context-length say what is read)"
    )
    group.add_argument(
        "--inside",
        action="store_true",
        help="activated neurons by layer, embeddings before and after each switch, loss by slot of "
        "the next patch, and what the patches hold, at token level and at patch level",
    )
    group.add_argument(
        "--patch-sizes",
        type=int,
        nargs="+",
        metavar="K",
        help="patch sizes to read at (default: 1 2 4 8 and those of the run)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="X",
        help="a neuron is activated above this absolute value (default: %(default)s, the paper's)",
    )


def asked(args: argparse.Namespace) -> bool:
    return bool(args.inside)


def run(args: argparse.Namespace) -> Iterator[results.Named]:
    """Look and keep it.

    Raises:
        UsageError: nothing to read, options that make no sense, a model without patch level.
        PatchtrainError: a model that gives no numbers.
    """
    _check(args)
    from patchtrain.analysis import inspection
    from patchtrain.evaluation.evaluate import choose_window
    from patchtrain.evaluation.loading import find_model, load_model

    name = results.checked_name(args.name or "inside")
    _, run_folder = find_model(args.run_folder)
    if run_folder is None and not (args.text or args.store):
        raise UsageError(
            f"{args.run_folder} is a model without a run: say what to read, --text FILE"
        )
    file = results.place(run_folder, args.out)
    loaded = load_model(args.run_folder)
    context = choose_window(loaded, args.context_length, None).context_length
    begun = time.monotonic()
    text, read = _read(args, loaded)
    plan = _plan(loaded)
    sizes = _patch_sizes(args.patch_sizes, plan, context, loaded.position_limit)
    models = _models(loaded, text, sizes, context, plan, args)
    embeddings = [entry.pop("table") for entry in models]
    result = {
        "name": name,
        "read": f"{len(text):,} tokens {read}{_patches_with(plan)}",
        "context_length": context,
        "threshold": args.threshold,
        "models": models,
        "drift": _drift(models, embeddings, text),
        "content": inspection.inspect_text(text, sizes, embeddings[-1]),
        "device": str(loaded.model.device),
        **results.provenance(begun),
    }
    if not args.json:
        from patchtrain.report.inside_terminal import print_inside

        print_inside(args.run_folder, result)
    results.keep(file, "inside", name, result, quiet=args.json)
    yield "inside", name, result


def _check(args: argparse.Namespace) -> None:
    if args.text and args.store:
        raise UsageError("--text and --store both say what to read: give one")
    if args.patch_sizes and min(args.patch_sizes) < 1:
        raise UsageError(f"--patch-sizes must be at least 1, not {min(args.patch_sizes)}")
    if not (math.isfinite(args.threshold) and args.threshold >= 0):
        raise UsageError(f"--threshold must be a number of at least 0, not {args.threshold}")
    if args.max_tokens is not None and args.max_tokens < 2:
        raise UsageError(f"--max-tokens must be at least 2, not {args.max_tokens}")


def _read(args: argparse.Namespace, loaded: LoadedModel) -> tuple[Text, str]:
    """The text and where it is from."""
    from patchtrain.analysis.patch_content import text_of_store, text_of_texts
    from patchtrain.data import tokenizer as tokenizers
    from patchtrain.data.sources import read_documents
    from patchtrain.data.store import TokenStore
    from patchtrain.evaluation.evaluate import open_run_store

    most = args.max_tokens or MAX_TOKENS
    if args.text:
        texts = read_documents(args.text, text_column=args.text_column, format=args.format)
        text = text_of_texts(texts, tokenizers.load(loaded.path), most)
        return text, f"of {', '.join(args.text)}"
    store = TokenStore.open(args.store) if args.store else open_run_store(loaded)
    tokenizer = store.load_tokenizer()
    loaded.check_tokenizer(tokenizer, store.path)
    text = text_of_store(store.validation, tokenizer, most)
    return text, f"of the validation split of {store.path}"


def _plan(loaded: LoadedModel) -> dict[str, Any]:
    """Of the run's plan, what a patch of the model's depends on."""
    plan = loaded.run.part("plan") if loaded.run else {}
    stages = plan.get("stages")
    own = [s.get("patch_size") for s in stages or [] if isinstance(s, dict)]
    return {
        "patch_sizes": [K for K in own if isinstance(K, int) and K > 0],
        "settings": {name: plan.get(name, UNUSED[name]) for name in _OF_PATCHES},
    }


def _patches_with(plan: dict[str, Any]) -> str:
    """What the run's patches have and the papers' have not, in words."""
    settings = plan["settings"]
    found = [name for name in _OF_PATCHES if settings[name] != UNUSED[name]]
    return "".join(f", {name} {settings[name]}" for name in found)


def _patch_sizes(
    asked_for: list[int] | None, plan: dict[str, Any], context: int, limit: int | None
) -> list[int]:
    """Those asked for, or the usual ones whose positions the model has room for."""
    if asked_for:
        return sorted(set(asked_for))
    sizes, settings = sorted({1, 2, 4, 8, *plan["patch_sizes"]}), plan["settings"]
    scale = {K: position_scale(settings["position_scale"], K) for K in sizes}
    return [K for K in sizes if limit is None or last_position(context, scale[K]) < limit]


def _models(
    loaded: LoadedModel,
    text: Text,
    sizes: list[int],
    context: int,
    plan: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The models kept at the run's switches, then the final one; ``table``: their embeddings."""
    from patchtrain.analysis import inside, inspection
    from patchtrain.evaluation.loading import load_model

    places = [*inside.stage_models(loaded), loaded.path]
    found = []
    with results.progress(len(text) * len(sizes) * len(places), quiet=args.quiet) as advance:
        for place in places:
            model = loaded.model if place == loaded.path else load_model(place).model
            levels = inside.read_levels(
                model, text.tokens, sizes, context, args.threshold, args.batch_size, advance,
                plan["settings"],
            )  # fmt: skip
            if not all(math.isfinite(level["loss"]) for level in levels):
                raise PatchtrainError(f"the loss of {place} is no number: the model is broken")
            table = inspection.token_embeddings(model)
            for level in levels:
                K = level["patch_size"]
                level["pooled_norm"] = inside.pooled_norm(table, text.tokens, K)
            found.append({
                "model": place.name,
                "path": str(place),
                "class": type(model).__name__,
                "levels": levels,
                "embeddings": inside.geometry(table, text.tokens),
                "table": table,
            })  # fmt: skip
    return found


def _drift(models: list[dict[str, Any]], tables: list[Any], text: Text) -> list[dict[str, Any]]:
    from itertools import pairwise

    from patchtrain.analysis import inside

    named = list(zip((entry["model"] for entry in models), tables, strict=True))
    return [
        {"from": before, "to": after, **inside.drift(one, other, text.tokens)}
        for (before, one), (after, other) in pairwise(named)
    ]
