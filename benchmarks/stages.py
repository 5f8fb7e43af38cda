"""How much faster a patch-level step reads tokens than a token-level step of the same model.

A whole training step is timed: forward, backward, clipping, AdamW. Every step computes the same
positions, in rows of as many positions as at token level or of as many tokens, so at patch size K
it reads K times the tokens and the limit of the speed-up is K. The patch sizes alternate, so that
what else the machine does falls on all of them; given is the median. What a patch-level step does
besides the transformer (look up and pool K embeddings a position, the loss, the optimizer) is timed
on its own too.

    python benchmarks/stages.py                       a model of 15M parameters, a few minutes
    python benchmarks/stages.py --layers 1 --width 64 --rows 2 --repeats 1 --out /tmp/s.json
    python benchmarks/stages.py --device cuda --dtype bfloat16 --compile --rows 64 --out gpu.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import about, spread, synchronize, write
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain import patch_level
from patchtrain.loss_backends import LOSSES, choose
from patchtrain.patches import embed_patches, patch_targets
from patchtrain.plan import CHOICES
from patchtrain.probing import probe

PATCH_SIZES = [1, 2, 4, 8, 16]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the step; ``benchmarks/loader.py`` takes them too."""
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=320, help="hidden size, a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, help="default: one for 64 of the width")
    parser.add_argument("--head-dim", type=int, help="default: what the width has for each head")
    parser.add_argument("--context-length", type=int, default=256, help="positions a sequence")
    parser.add_argument("--rows", type=int, default=8, help="sequences a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"],
                        help="bfloat16 is autocast")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--backend", default="auto", help="loss backend at patch level")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments(parser)
    parser.add_argument("--patch-sizes", type=int, nargs="+", default=PATCH_SIZES, metavar="K")
    parser.add_argument("--as-many", default="positions", choices=CHOICES["rows"],
                        help="what a row of patches has as many of as a row of tokens "
                             "(%(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results/stages.json"))
    args = parser.parse_args()
    if args.as_many == "tokens" and any(args.context_length % K for K in args.patch_sizes):
        parser.error("--as-many tokens needs a --context-length that each of --patch-sizes divides")
    torch.set_num_threads(args.threads)
    if 1 not in args.patch_sizes:
        parser.error("--patch-sizes needs 1, the token level, to compare with")
    bench = Bench(args, args.as_many)
    rows = bench.measure(args.patch_sizes)
    result = about("stages", "model, weights, positions a step, optimizer and machine", args.device)
    result["settings"] = bench.settings
    result["rows"] = rows
    write(args.out, result)


class Bench:
    """One model and its optimizer, stepped at any patch size."""

    def __init__(self, args: argparse.Namespace, as_many: str = "positions") -> None:
        self.args, self.as_many = args, as_many
        torch.manual_seed(0)
        heads = args.heads or max(args.width // 64, 1)
        config = LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.width,
            intermediate_size=args.width * 8 // 3 // 32 * 32,
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=args.head_dim or args.width // heads,
            max_position_embeddings=args.context_length,
            use_cache=False,
        )
        self.model = LlamaForCausalLM(config).to(args.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.probe = probe(self.model)
        self.backend = choose(args.backend, self.probe, self.model.get_output_embeddings())
        self.settings = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **{name: getattr(args, name) for name in (
                "vocabulary", "width", "layers", "context_length", "rows", "device", "dtype",
                "compile", "threads", "repeats")},
            "as_many": as_many,
            "heads": heads,
            "head_dim": config.head_dim,
            "backend": str(self.backend),
            "seed": 0,
        }  # fmt: skip

    def shape(self, patch_size: int) -> tuple[int, int]:
        """Rows of a step, and the positions of each."""
        shorter = patch_size if self.as_many == "tokens" else 1
        return self.args.rows * shorter, self.args.context_length // shorter

    def ids(self, patch_size: int) -> torch.Tensor:
        args, (rows, positions) = self.args, self.shape(patch_size)
        generator = torch.Generator().manual_seed(patch_size)
        ids = torch.randint(args.vocabulary, (rows, positions * patch_size), generator=generator)
        return ids.to(args.device)

    def autocast(self) -> Any:
        if self.args.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.args.device).type, dtype=torch.bfloat16)

    def step(self, model: Any, ids: torch.Tensor) -> float:
        """Seconds of one training step."""
        synchronize(self.args.device)
        begin = time.perf_counter()
        with self.autocast():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.args.device)
        return time.perf_counter() - begin

    def measure(self, patch_sizes: list[int]) -> list[dict[str, Any]]:
        """Seconds and tokens a second at each patch size."""
        seconds: dict[int, list[float]] = {K: [] for K in patch_sizes}
        data = {K: self.ids(K) for K in patch_sizes}
        if self.args.compile:  # one after the other: going back and forth would compile anew
            for K in patch_sizes:
                torch.compiler.reset()
                self.at(K, data[K], repeats=3)  # warms up
                seconds[K] = self.at(K, data[K], self.args.repeats)
        else:
            for repeat in range(self.args.repeats + 1):
                for K in patch_sizes:
                    taken = self.at(K, data[K], repeats=1)
                    seconds[K] += taken if repeat else []  # the first round warms up
        positions = self.args.rows * self.args.context_length
        base = spread(seconds[1])["median"]
        rows = []
        for K in patch_sizes:
            found = spread(seconds[K])
            speedup = K * base / found["median"]
            rate = K * positions / found["median"]
            rows.append({
                "patch_size": K,
                "seconds": found["median"],
                "seconds_spread": [found["least"], found["most"]],
                "tokens_per_s": rate,
                "speedup": speedup,
                "share_of_limit": speedup / K,
                "parts": self.parts(K, data[K]),
            })  # fmt: skip
            print(f"K={K:2} {found['median']:7.3f} s a step {rate:10,.0f} tokens/s "
                  f"{speedup:6.2f} times, {speedup / K:.3f} of the limit", flush=True)  # fmt: skip
        return rows

    def at(self, patch_size: int, ids: torch.Tensor, repeats: int) -> list[float]:
        """Seconds of some steps at a patch size."""
        with patch_level(self.model, patch_size, backend=self.backend, checked=self.probe):
            model = torch.compile(self.model) if self.args.compile else self.model
            return [self.step(model, ids) for _ in range(repeats)]

    def parts(self, patch_size: int, ids: torch.Tensor) -> dict[str, float]:
        """Seconds, forward and backward, of what is not the transformer; the median of each."""
        K, args = patch_size, self.args
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        states = torch.randn(*self.shape(K), args.width, device=args.device)
        states.requires_grad_()
        targets = patch_targets(ids, K)

        def pooled() -> None:
            with self.autocast():
                patches = embed_patches(embedding, ids, K)
            patches.backward(states.detach())

        def loss() -> None:
            with self.autocast():
                LOSSES["chunked"](states[:, :-1], head.weight, targets).backward()

        def own_loss() -> None:  # what the model does at token level
            with self.autocast():
                self.model.loss_function(head(states), ids, args.vocabulary).backward()

        def update() -> None:
            for parameter in self.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

        works = {"embed": pooled, "loss": own_loss if K == 1 else loss, "optimizer": update}
        return {name: self.timed(work) for name, work in works.items()}

    def timed(self, work: Callable[[], None]) -> float:
        taken = []
        for _ in range(max(self.args.repeats, 3)):
            self.optimizer.zero_grad()
            synchronize(self.args.device)
            begin = time.perf_counter()
            work()
            synchronize(self.args.device)
            taken.append(time.perf_counter() - begin)
        self.optimizer.zero_grad()
        return statistics.median(taken[1:])


if __name__ == "__main__":
    main()
