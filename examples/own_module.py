"""A model of your own, without transformers: the two functions are all there is to it.

    python examples/own_module.py --steps 150 --out out/own.pt

``patch_loss`` forms a chunk of logits at a time and takes the loss of all K targets from it, so
the model ends at the head's input. At K = 1 the same lines are ordinary next-token training.
"""

import argparse

import data
import torch
from torch import Tensor, nn

from patchtrain import patch_loss, patch_targets, pool_embeddings

PATCH_SIZE, PATCH_FRACTION, CONTEXT, ROWS = 4, 2 / 3, 64, 8


class GPT(nn.Module):
    """A decoder with learned positions, which count patches at patch level and tokens after it."""

    def __init__(self, vocab: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocab, width), nn.Embedding(CONTEXT, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(
            block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, vocab, bias=False)
        for table in (self.embed, self.positions, self.head):
            nn.init.normal_(table.weight, std=0.05)

    def loss(self, ids: Tensor, patch_size: int = 1, total: float | None = None) -> Tensor:
        """Mean loss of ``ids`` (B, patch_size * T); or its sum, divided by ``total`` targets."""
        x = pool_embeddings(self.embed(ids), patch_size)  # (B, T, D)
        x = x + self.positions.weight[: x.shape[1]]
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        hidden = self.body(x, mask=causal, is_causal=True)
        targets = patch_targets(ids, patch_size)  # (B, T - 1, K): the tokens of the next patch
        return patch_loss(hidden[:, :-1], self.head.weight, targets, total=total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", default="out/own.pt")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held_out = (rows.to(device) for rows in data.rows(PATCH_SIZE * CONTEXT))
    model = GPT(len(data.tokenizer())).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(args.steps):
        patch_size = PATCH_SIZE if step < PATCH_FRACTION * args.steps else 1
        batch = train[torch.randint(len(train), (ROWS,))].view(-1, patch_size * CONTEXT)
        total = batch[:, patch_size:].numel()  # targets of all passes: divide once
        step_loss = 0.0
        for part in batch.split(ROWS):
            loss = model.loss(part, patch_size, total)
            loss.backward()
            step_loss += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(1, args.steps // 20) == 0:
            print(f"step {step:4}  patch size {patch_size}  loss {step_loss:.4f}")

    with torch.no_grad():
        print(f"held-out token-level loss {model.loss(held_out.view(-1, CONTEXT)):.4f}")
    torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
