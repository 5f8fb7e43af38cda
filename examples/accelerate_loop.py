"""A loop on Hugging Face accelerate: any number of processes, mixed precision, accumulation.

    accelerate launch examples/accelerate_loop.py --steps 150 --out out/accelerate

A step reads the same rows in both stages. At token level each is cut into PATCH_SIZE sequences and
the step into as many passes, so that a pass always has ROWS sequences of CONTEXT positions.
"""

import argparse
from contextlib import nullcontext

import data
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from patchtrain import patch_level

PATCH_SIZE, PATCH_FRACTION, CONTEXT, ROWS = 4, 2 / 3, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", default="out/accelerate")
    args = parser.parse_args()

    set_seed(0)
    accelerator = Accelerator()
    train, held_out = data.rows(PATCH_SIZE * CONTEXT)
    plain = data.tiny_model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    loader = DataLoader(train, batch_size=ROWS, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(plain, optimizer, loader)

    switch = round(PATCH_FRACTION * args.steps)
    batches = (batch for _ in range(args.steps) for batch in loader)  # as many epochs as it takes
    for patch_size, steps in ((PATCH_SIZE, range(switch)), (1, range(switch, args.steps))):
        # In place, and so inside whatever accelerate has wrapped around the model.
        with patch_level(accelerator.unwrap_model(model), patch_size):
            for step in steps:
                batch = next(batches).view(-1, patch_size * CONTEXT)
                # The targets of the whole step, over all passes and processes: divide once.
                targets = torch.tensor(batch[:, 1:].numel(), device=accelerator.device)
                targets = accelerator.reduce(targets, "sum")
                passes = batch.split(ROWS)
                step_loss = torch.zeros((), device=accelerator.device)
                for part in passes:
                    with nullcontext() if part is passes[-1] else accelerator.no_sync(model):
                        with accelerator.autocast():
                            output = model(input_ids=part, labels=part, num_items_in_batch=targets)
                        # Processes' gradients are averaged, and ours have to be summed.
                        accelerator.backward(output.loss * accelerator.num_processes)
                        step_loss += output.loss.detach()
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                step_loss = accelerator.reduce(step_loss, "sum").item()
                if step % max(1, args.steps // 20) == 0:
                    accelerator.print(
                        f"step {step:4}  patch size {patch_size}  loss {step_loss:.4f}"
                    )

    plain = accelerator.unwrap_model(model)
    if accelerator.is_main_process:
        loss = data.held_out_loss(plain, held_out.view(-1, CONTEXT).to(accelerator.device))
        print(f"held-out token-level loss {loss:.4f}")
        plain.save_pretrained(args.out)  # a plain checkpoint: AutoModelForCausalLM opens it
        data.tokenizer().save_pretrained(args.out)
    accelerator.end_training()


if __name__ == "__main__":
    main()
