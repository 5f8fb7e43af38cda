"""A loop on Lightning Fabric: any number of devices, mixed precision, accumulation.

    python examples/fabric_loop.py --steps 150 --out out/fabric

A step reads the same rows in both stages. At token level each is cut into PATCH_SIZE sequences and
the step into as many passes, so that a pass always has ROWS sequences of CONTEXT positions.
"""

import argparse

import data
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from patchtrain import patch_level

PATCH_SIZE, PATCH_FRACTION, CONTEXT, ROWS = 4, 2 / 3, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--devices", default="1", help="how many, or auto")
    parser.add_argument("--precision", default="32-true", help="bf16-mixed, for example")
    parser.add_argument("--out", default="out/fabric")
    args = parser.parse_args()

    fabric = Fabric(devices=args.devices, precision=args.precision)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    train, held_out = data.rows(PATCH_SIZE * CONTEXT)
    plain = data.tiny_model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    model, optimizer = fabric.setup(plain, optimizer)
    loader = fabric.setup_dataloaders(
        DataLoader(train, batch_size=ROWS, shuffle=True, drop_last=True)
    )

    switch = round(PATCH_FRACTION * args.steps)
    batches = (batch for _ in range(args.steps) for batch in loader)  # as many epochs as it takes
    for patch_size, steps in ((PATCH_SIZE, range(switch)), (1, range(switch, args.steps))):
        with patch_level(plain, patch_size):  # in place, and so inside Fabric's wrapper
            for step in steps:
                batch = next(batches).view(-1, patch_size * CONTEXT)
                # The targets of the whole step, over all passes and processes: divide once.
                targets = fabric.all_reduce(torch.tensor(batch[:, 1:].numel()), reduce_op="sum")
                passes = batch.split(ROWS)
                step_loss = torch.zeros((), device=fabric.device)
                for part in passes:
                    with fabric.no_backward_sync(model, enabled=part is not passes[-1]):
                        output = model(input_ids=part, labels=part, num_items_in_batch=targets)
                        # Processes' gradients are averaged, and ours have to be summed.
                        fabric.backward(output.loss * fabric.world_size)
                    step_loss += output.loss.detach()
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
                step_loss = fabric.all_reduce(step_loss, reduce_op="sum").item()
                if step % max(1, args.steps // 20) == 0:
                    fabric.print(f"step {step:4}  patch size {patch_size}  loss {step_loss:.4f}")

    if fabric.is_global_zero:
        loss = data.held_out_loss(plain, held_out.view(-1, CONTEXT).to(fabric.device))
        print(f"held-out token-level loss {loss:.4f}")
        plain.save_pretrained(args.out)  # a plain checkpoint: AutoModelForCausalLM opens it
        data.tokenizer().save_pretrained(args.out)


if __name__ == "__main__":
    main()
