"""A plain PyTorch loop: patch level for the first two thirds of the tokens, then token level.

    python examples/pytorch_loop.py --steps 150 --out out/pytorch

A step reads the same tokens in both stages (arXiv:2407.12665): ROWS sequences of
PATCH_SIZE * CONTEXT tokens at patch level, PATCH_SIZE times as many of CONTEXT tokens at token
level. The transformer always sees CONTEXT positions, ROWS of them in a pass.
"""

import argparse
import math

import data
import torch
from torch.optim.lr_scheduler import LambdaLR

from patchtrain import patch_level

PATCH_SIZE, PATCH_FRACTION, CONTEXT, ROWS = 4, 2 / 3, 64, 8


def optimizer_for(model: torch.nn.Module, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW with a short warm-up and a cosine over ``steps``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))

    return optimizer, LambdaLR(optimizer, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--carry", action="store_true", help="carry the optimizer over the switch")
    parser.add_argument("--out", default="out/pytorch")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = (rows.to(device) for rows in data.rows(PATCH_SIZE * CONTEXT))
    model = data.tiny_model().to(device)
    order = torch.randint(len(train), (args.steps, ROWS))
    switch = round(PATCH_FRACTION * args.steps)
    optimizer, schedule = optimizer_for(model, args.steps if args.carry else switch)

    for patch_size, steps in ((PATCH_SIZE, range(switch)), (1, range(switch, args.steps))):
        if patch_size == 1 and not args.carry:
            optimizer, schedule = optimizer_for(model, len(steps))
        with patch_level(model, patch_size):  # at 1 it changes nothing
            for step in steps:
                batch = train[order[step]].view(-1, patch_size * CONTEXT)
                # Sum over all passes, divide once: this counts the next-token targets of the whole
                # step, and patch level turns it into its own count.
                targets = batch[:, 1:].numel()
                step_loss = 0.0
                for part in batch.split(ROWS):
                    loss = model(input_ids=part, labels=part, num_items_in_batch=targets).loss
                    loss.backward()
                    step_loss += loss.item()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                if step % max(1, args.steps // 20) == 0:
                    print(f"step {step:4}  patch size {patch_size}  loss {step_loss:.4f}")

    print(f"held-out token-level loss {data.held_out_loss(model, held_out.view(-1, CONTEXT)):.4f}")
    model.save_pretrained(args.out)  # a plain checkpoint: AutoModelForCausalLM opens it
    data.tokenizer().save_pretrained(args.out)


if __name__ == "__main__":
    main()
