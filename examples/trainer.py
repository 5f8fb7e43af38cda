"""transformers' Trainer, unchanged but for two lines: an import and a callback.

    python examples/trainer.py --steps 150 --out out/trainer

Rows keep their length in both stages: at patch level the transformer sees a quarter of the
positions, so such a step costs a quarter. Evaluation is at token level all the way.
"""

import argparse

import data
import torch
from transformers import Trainer, TrainingArguments

from patchtrain import PatchLevelCallback  # the first line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", default="out/trainer")
    args = parser.parse_args()

    torch.manual_seed(0)
    train, held_out = (
        [{"input_ids": row, "labels": row} for row in rows] for rows in data.rows(256)
    )
    trainer = Trainer(
        data.tiny_model(),
        TrainingArguments(
            args.out,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 15,
            logging_steps=max(1, args.steps // 15),
            eval_strategy="steps",
            eval_steps=max(1, args.steps // 3),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=data.tokenizer(),
        callbacks=[PatchLevelCallback(patch_size=4, patch_fraction=2 / 3)],  # the second line
    )
    trainer.train()
    print(f"held-out token-level loss {trainer.evaluate()['eval_loss']:.4f}")
    trainer.save_model(args.out)  # a plain checkpoint: AutoModelForCausalLM opens it


if __name__ == "__main__":
    main()
