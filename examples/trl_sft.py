"""TRL's SFTTrainer: fine-tuning at patch level first, then at token level.

    python examples/trl_sft.py --steps 150 --packing --out out/sft

SFTTrainer scores single tokens, so at patch level the loss has to be the model's own: that is the
one method below. Prompts are no targets. Each example is padded to whole patches, so that packed
ones begin where a patch begins; without packing the collator could do it (pad_to_multiple_of).
"""

import argparse

import data
import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from patchtrain import PatchLevelCallback

PATCH_SIZE, LENGTH = 4, 128
PATCH_INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")


class PatchSFTTrainer(SFTTrainer):
    patches: PatchLevelCallback

    def compute_loss(self, model, inputs, *args, **kwargs):
        if not self.patches.at_patch_level:
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs = {name: inputs[name] for name in PATCH_INPUTS if name in inputs}
        return Trainer.compute_loss(self, model, inputs, *args, **kwargs)


def example(row: dict[str, str]) -> dict[str, list[int]]:
    """Ids of prompt and completion, in whole patches; only the completion is to be learned."""
    tokenizer = data.tokenizer()
    prompt, body = (tokenizer(row[part])["input_ids"] for part in ("prompt", "completion"))
    ids = [*prompt, *body, tokenizer.eos_token_id][:LENGTH]
    padding = -len(ids) % PATCH_SIZE
    return {
        "input_ids": ids + [tokenizer.pad_token_id] * padding,
        "labels": [-100] * len(prompt[:LENGTH]) + ids[len(prompt) :] + [-100] * padding,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--packing", action="store_true", help="several examples in a row")
    parser.add_argument("--out", default="out/sft")
    args = parser.parse_args()

    torch.manual_seed(0)
    examples = [example(row) for row in data.functions(800)]
    split = Dataset.from_list(examples).train_test_split(50, seed=0)
    patches = PatchLevelCallback(PATCH_SIZE, patch_fraction=0.5)
    config = SFTConfig(
        args.out,
        max_length=LENGTH,
        packing=args.packing,
        max_steps=args.steps,
        learning_rate=3e-3,
        per_device_train_batch_size=4,
        logging_steps=max(1, args.steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),  # its default is bf16 everywhere
    )
    model, rows = data.tiny_model(), (split["train"], split["test"])
    trainer = PatchSFTTrainer(model, config, None, *rows, data.tokenizer(), callbacks=[patches])
    trainer.patches = patches
    trainer.train()
    print(f"held-out token-level loss {trainer.evaluate()['eval_loss']:.4f}")
    trainer.save_model(args.out)  # a plain checkpoint: AutoModelForCausalLM opens it


if __name__ == "__main__":
    main()
