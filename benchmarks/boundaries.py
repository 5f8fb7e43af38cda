"""Do the borders of patches predict the loss? And does it matter where patches begin?

Small models are trained at patch level, then at token level. At the end of the patch level, every
token of held-out text is predicted at each of the K phases (patches that begin at token 0, 1, ...),
so each token is seen at each place of a patch. Then:

* the loss of a patch is fitted by whether it begins or ends inside a word, holds two sentences or
  two documents; so is the loss of each token, against the same token in the other phases, in which
  other patches hold it: what the borders do, whatever the tokens;
* how much of the variance of the patch loss borders explain is put beside what is explained by the
  tokens themselves: their frequency in the training text, and how many go on with a word;
* tokens that go on with a word, and those that do not, are followed through the places of a patch;
* models are trained with patches that always begin at the same places, and with a phase drawn anew
  for each row and epoch. Only over several epochs do these differ: in one, all phases are random.

    python benchmarks/boundaries.py --text corpus.jsonl.xz      about ten minutes on one core
    python benchmarks/boundaries.py --text stdlib --steps 20 10 --seeds 0 --out /tmp/b.json
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, write
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain import patch_level
from patchtrain.analysis.inside import cut_rows, slot_losses
from patchtrain.analysis.inspection import inspect_text
from patchtrain.analysis.patch_content import PATCH_SIZES, Text, text_of_texts
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.sources import open_corpus
from patchtrain.patches import patch_targets
from patchtrain.probing import probe

FEATURES = ("begins in a word", "ends in a word", "holds two sentences", "holds two documents")
CONTROLS = ("surprisal of its tokens by frequency", "tokens that go on with a word")
SKIPPED = 8  # patches at the beginning of a row, which have little before them
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", required=True, help="a corpus, as `patchtrain prepare` reads it")
    parser.add_argument("--tokens", type=int, default=800_000, help="training tokens")
    parser.add_argument("--held-out", type=int, default=160_000, help="tokens to measure on")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs=2, default=[800, 400],
                        metavar=("PATCH", "TOKEN"), help="of each stage")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=96, help="hidden size")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--context-length", type=int, default=64)
    parser.add_argument("--rows", type=int, default=16, help="rows a step")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate")
    parser.add_argument("--out", type=Path, default=Path("results/boundaries.json"))
    args = parser.parse_args()
    begun = time.monotonic()
    train, held_out = texts(args)
    rows = []
    for seed in args.seeds:
        for arm in ("fixed", "random"):
            rows.append(trained(args, train, held_out, seed, arm))
            print(f"seed {seed} {arm}: {rows[-1]['token_loss']:.4f}, "
                  f"{time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    result = about("boundaries", "model, initial weights of a seed, text, order of rows, steps")
    names = ("text", "tokens", "held_out", "vocabulary", "patch_size", "steps", "seeds", "width",
             "layers", "context_length", "rows", "rate")  # fmt: skip
    result["settings"] = {name: getattr(args, name) for name in names}
    result["settings"]["text"] = Path(args.text).name
    result["settings"]["parameters"] = rows[0].pop("parameters")
    result["settings"]["threads"] = torch.get_num_threads()
    result["seconds"] = round(time.monotonic() - begun)
    content = inspect_text(train, PATCH_SIZES)
    result["content"] = {name: content[name] for name in ("tokens", "patches", "distances")}
    result["rows"] = rows
    result["across_seeds"] = across_seeds(rows)
    write(args.out, result)


def texts(args: argparse.Namespace) -> tuple[Text, Text]:
    """Training and held-out text; every fifth document is held out."""

    def documents(held_out: bool) -> Iterator[str]:
        corpus = open_corpus([args.text])
        for number, text in enumerate(corpus.documents(cut=True)):
            if (number % 5 == 4) == held_out:
                yield text

    sample = list(islice(documents(False), 400))
    tokenizer = tokenizers.train("bpe", sample, args.vocabulary)
    return (text_of_texts(documents(False), tokenizer, args.tokens),
            text_of_texts(documents(True), tokenizer, args.held_out))  # fmt: skip


def trained(
    args: argparse.Namespace, train: Text, held_out: Text, seed: int, arm: str
) -> dict[str, Any]:
    """One model through both stages, and what was measured at the end of each."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=args.vocabulary, hidden_size=args.width, num_hidden_layers=args.layers,
        intermediate_size=args.width * 8 // 3, num_attention_heads=max(args.width // 32, 1),
        max_position_embeddings=args.context_length, tie_word_embeddings=True, use_cache=False,
        initializer_range=0.06,
    ))  # fmt: skip
    K, (patch_steps, token_steps) = args.patch_size, args.steps
    checked = probe(model)
    with patch_level(model, K, checked=checked):
        run_stage(model, train, K, patch_steps, arm == "random", rng, args)
        losses = phase_losses(model, held_out, K, args.context_length)
    found = {"seed": seed, "arm": arm, **boundary_effects(losses, train, held_out, K)}
    run_stage(model, train, 1, token_steps, False, rng, args)
    ids = torch.from_numpy(cut_rows(held_out.tokens, 1, args.context_length))
    found["token_loss"] = float(losses_of(model, ids, 1).mean())
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return found


def run_stage(
    model: Any, text: Text, K: int, steps: int, random_phase: bool, rng: np.random.Generator,
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """Train for some steps; warm-up and cosine, a fresh optimizer."""
    length = K * args.context_length
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.95),
                                  weight_decay=0.1)  # fmt: skip
    warm_up = max(steps // 20, 1)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    tokens, order = text.tokens, np.zeros(0, dtype=np.int64)
    phases = np.random.default_rng(rng.integers(2**32))  # so that both arms read the same order
    model.train()
    for _ in range(steps):
        if len(order) < args.rows:
            order = rng.permutation((len(tokens) - K) // length) * length
        starts, order = order[: args.rows], order[args.rows :]
        if random_phase:
            starts = starts + phases.integers(0, K, len(starts))
        ids = torch.from_numpy(tokens[starts[:, None] + np.arange(length)])
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@torch.no_grad()
def losses_of(model: Any, ids: torch.Tensor, K: int) -> torch.Tensor:
    """``(rows, patches - 1, K)``: the loss of each token of each patch but a row's first."""
    model.eval()
    parts = [
        slot_losses(model(input_ids=part).logits[:, :-1], patch_targets(part, K))
        for part in ids.split(64)
    ]
    return torch.cat(parts)


def phase_losses(model: Any, text: Text, K: int, context_length: int) -> list[dict[str, Any]]:
    """For each phase: ``losses`` ``(rows, patches, K)`` and ``places``, where their tokens stand.

    The same tokens count in every phase, but for a few at the ends of rows.
    """
    length = K * context_length
    found = []
    for phase in range(K):
        ids = cut_rows(text.tokens[phase : len(text) - K + phase], K, context_length)
        losses = losses_of(model, torch.from_numpy(ids), K).double().numpy()
        places = phase + np.arange(ids.size).reshape(len(ids), length)[:, K:]
        places = places.reshape(len(ids), -1, K)
        found.append({"losses": losses[:, SKIPPED:], "places": places[:, SKIPPED:]})
    return found


def boundary_effects(
    phases: list[dict[str, Any]], train: Text, text: Text, K: int
) -> dict[str, Any]:
    """What the borders of patches tell of their loss, in nats a token."""
    losses = np.concatenate([phase["losses"] for phase in phases])
    places = np.concatenate([phase["places"] for phase in phases])
    # The same stretch of text in all phases is one cluster: its losses go together.
    rows = np.concatenate([np.arange(len(phase["losses"])) for phase in phases])
    clusters = np.broadcast_to(rows[:, None], losses.shape[:2]).ravel()
    goes_on = np.concatenate([[False], text.in_word[:-1]])  # with the word of the token before it
    first, last = places[..., 0], places[..., -1]
    features = np.stack([
        goes_on[first], text.in_word[last], text.sentence[first] != text.sentence[last],
        text.document[first] != text.document[last],
    ], axis=-1).reshape(-1, len(FEATURES)).astype(float)  # fmt: skip
    counts = np.bincount(train.tokens, minlength=int(text.tokens.max()) + 1) + 1.0
    surprisal = -np.log(counts / counts.sum())[text.tokens]
    controls = np.stack(
        [surprisal[places].mean(-1), goes_on[places].mean(-1)], axis=-1
    ).reshape(-1, len(CONTROLS))  # fmt: skip
    patch_losses = losses.mean(-1).ravel()
    alone = fit(patch_losses, features, clusters)
    both = fit(patch_losses, np.hstack([features, controls]), clusters)
    same = same_tokens(losses, places, features, clusters)
    return {
        "patch_loss": float(patch_losses.mean()),
        "patches": len(patch_losses),
        "shares": dict(zip(FEATURES, features.mean(0).tolist(), strict=True)),
        "alone": dict(zip(FEATURES, alone["estimates"], strict=True)),
        "same_tokens": dict(zip(FEATURES, same, strict=True)),
        "explained_by_borders": alone["explained"],
        "explained_by_tokens": fit(patch_losses, controls, clusters)["explained"],
        "explained_by_both": both["explained"],
        "places": place_effects(losses, goes_on[places], rows),
        "loss_by_phase": [float(phase["losses"].mean()) for phase in phases],
    }


def same_tokens(
    losses: np.ndarray, places: np.ndarray, features: np.ndarray, clusters: np.ndarray
) -> list[dict[str, float]]:
    """What each feature of a patch does to the loss of the tokens in it.

    The loss of a token is a constant of its own, one of its place in the patch, and the features of
    the patch. Only tokens that are seen at all places count: their constants drop out with their
    means.
    """
    K = losses.shape[-1]
    token = places.reshape(-1, K).ravel()
    y = losses.ravel()
    slots = np.tile(np.eye(K)[:, 1:], (len(y) // K, 1))
    x = np.hstack([np.repeat(features, K, axis=0), slots])
    seen = np.bincount(token)
    kept = seen[token] == K
    token, y, x, cluster = token[kept], y[kept], x[kept], np.repeat(clusters, K)[kept]

    def within(values: np.ndarray) -> np.ndarray:
        means = np.bincount(token, values) / np.maximum(np.bincount(token), 1)
        return values - means[token]

    x = np.stack([within(column) for column in x.T], axis=1)
    return fit(within(y), x, cluster)["estimates"][: features.shape[1]]


def place_effects(losses: np.ndarray, goes_on: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Mean loss by place in the patch of tokens that go on with a word and of those that do not.

    ``cut``: what the first place does to the former more than to the latter, against the other
    places: the effect of a border between a token and the part of its word before it.
    """
    K = losses.shape[-1]

    def means(part: np.ndarray) -> np.ndarray:
        """``(2, K)`` over some rows: begins, goes on."""
        return np.stack([
            [losses[part][..., slot][goes_on[part][..., slot] == kind].mean() for slot in range(K)]
            for kind in (False, True)
        ])  # fmt: skip

    def cut(table: np.ndarray) -> float:
        effects = table[:, 0] - table[:, 1:].mean(1)
        return float(effects[1] - effects[0])

    whole = means(np.ones(len(rows), dtype=bool))
    # Jackknife over 20 stretches of the text.
    groups = rows * 20 // (rows.max() + 1)
    left_out = [cut(means(groups != group)) for group in np.unique(groups)]
    n = len(left_out)
    error = math.sqrt((n - 1) / n * sum((x - statistics.mean(left_out)) ** 2 for x in left_out))
    return {
        "begins": whole[0].tolist(),
        "goes_on": whole[1].tolist(),
        "cut": interval(cut(whole), error),
    }


def fit(y: np.ndarray, x: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    """Least squares with a constant; errors are robust to what goes together in a cluster.

    ``explained`` is the share of the variance of ``y``.
    """
    design = np.hstack([np.ones((len(y), 1)), x])
    bread = np.linalg.pinv(design.T @ design)
    slopes = bread @ (design.T @ y)
    residuals = y - design @ slopes
    scores = np.zeros((int(clusters.max()) + 1, design.shape[1]))
    np.add.at(scores, clusters, design * residuals[:, None])
    errors = np.sqrt(np.diag(bread @ (scores.T @ scores) @ bread))
    return {
        "estimates": [interval(float(a), float(e)) for a, e in zip(slopes[1:], errors[1:],
                                                                   strict=True)],
        "explained": float(1 - residuals.var() / y.var()),
    }  # fmt: skip


def interval(value: float, error: float) -> dict[str, float]:
    return {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error}


def across_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95% intervals of their spread (None of one seed), of the fixed arm;
    and what a random phase does, paired by seed."""
    fixed = [row for row in rows if row["arm"] == "fixed"]
    loss = {(row["arm"], row["seed"]): row["token_loss"] for row in rows}
    patch = {(row["arm"], row["seed"]): row["patch_loss"] for row in rows}
    seeds = [row["seed"] for row in fixed]
    kinds = {
        kind: {name: spread([row[kind][name]["value"] for row in fixed]) for name in FEATURES}
        for kind in ("alone", "same_tokens")
    }
    return {
        **kinds,
        "cut": spread([row["places"]["cut"]["value"] for row in fixed]),
        "phase_range": spread([max(r["loss_by_phase"]) - min(r["loss_by_phase"]) for r in fixed]),
        "random_phase_token_loss": spread([loss["random", s] - loss["fixed", s] for s in seeds]),
        "random_phase_patch_loss": spread([patch["random", s] - patch["fixed", s] for s in seeds]),
    }


def spread(values: list[float]) -> dict[str, float | None]:
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return {"value": mean, "low": None, "high": None}
    half = T95.get(n, 2.0) * statistics.stdev(values) / math.sqrt(n)
    return {"value": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
