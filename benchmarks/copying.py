"""What patches teach: is it the loss on what stood in the context before?

A model of two layers can learn to copy: to find the last place in its context where the tokens it
has just read stood before, and to expect what followed there. It takes two attention heads, one
above the other (an induction head, arXiv:2209.11895), and is learned in a jump, early or late or
not at all. Here the held-out tokens of a study's runs are parted by what the context has to copy:

    new        the token before it has not been there in this window
    one        what followed that token last time is this token
    two        the same of the last two tokens
    misleads   what followed last time is another token

and the loss of each part is given for every run whose model is still there.

    python benchmarks/evidence.py long --keep models --kept /tmp/kept --work /tmp/evidence
    python benchmarks/copying.py /tmp/evidence/long                     under a minute on one core
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import about, write

from patchtrain.data.store import TokenStore
from patchtrain.evaluation.loading import load_model
from patchtrain.evaluation.perplexity import evaluating
from patchtrain.runs import RunFolder

PARTS = ("new", "one", "two", "misleads")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="its folder, with runs/NAME/model")
    parser.add_argument("--windows", type=int, default=800, help="of the validation split, at most")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("results/copying.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = [RunFolder(path.parent) for path in sorted((args.study / "runs").glob("*/model"))]
    if not runs:
        raise SystemExit(f"{args.study}/runs: no run with a model; train it with --keep models")
    rows, shares = [], {}
    for run in runs:
        row, shares = measured(run, args.windows)
        rows.append(row)
        print(row["run"], {part: round(row["losses"][part], 3) for part in PARTS}, flush=True)
    result = about("copying", "held-out tokens and context")
    result["settings"] = {"windows": args.windows, "threads": args.threads}
    write(args.out, {**result, "shares": shares, "rows": rows})


def measured(run: RunFolder, most: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The losses of one run in nats a token, whole and by part, and the share of each part."""
    info = run.info()
    context = info["result"]["context_length"]
    tokens = np.asarray(TokenStore.open(info["store"]["path"]).split("validation").tokens[:])
    count = min(len(tokens) // (context + 1), most)
    windows = tokens[: count * (context + 1)].astype(np.int64).reshape(count, context + 1)
    parts = np.stack([parts_of(window) for window in windows])
    losses = losses_of(load_model(run.model, "cpu").model, windows)
    row = {
        "run": run.path.name,
        "learning_rate": info["learning_rate"],
        "loss": float(losses.mean()),
        "losses": {name: float(losses[parts == at].mean()) for at, name in enumerate(PARTS)},
    }
    return row, {name: float((parts == at).mean()) for at, name in enumerate(PARTS)}


def parts_of(window: np.ndarray) -> np.ndarray:
    """For each token of ``(T + 1,)`` but the first, the index of its part in ``PARTS``: ``(T,)``.

    Two tokens that stood before decide over one.
    """
    found = np.zeros(len(window) - 1, dtype=np.int64)
    ids = window.tolist()
    last: dict[tuple[int, ...], int] = {}
    for place in range(len(ids) - 1):
        for length, name in ((1, "one"), (2, "two")):
            key = tuple(ids[place + 1 - length : place + 1])
            if len(key) < length:
                continue
            if key in last:
                right = ids[last[key] + 1] == ids[place + 1]
                found[place] = PARTS.index(name if right else "misleads")
            last[key] = place
    return found


def losses_of(model: torch.nn.Module, windows: np.ndarray) -> np.ndarray:
    """Nats of each token of ``(n, T + 1)`` but the first of each row: ``(n, T)``."""
    found = []
    with evaluating(model):
        for batch in torch.from_numpy(windows).split(32):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
            found.append(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
                ).view(len(batch), -1)
            )
    return torch.cat(found).numpy()


if __name__ == "__main__":
    main()
