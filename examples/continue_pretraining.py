"""Go on training a checkpoint that is there: patch level for half of the tokens, then token level.

    python examples/continue_pretraining.py HuggingFaceTB/SmolLM2-135M --context 1024

Any Hugging Face name or folder will do. Without one, a tiny checkpoint is trained first, so that
this runs anywhere. The checkpoint's own tokenizer reads the new text.
"""

import argparse

import data
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from patchtrain import PatchConfig, PatchTrainer


def train(model: str | None, texts: list[str], out: str, rate: float, **plan) -> None:
    """Train ``model`` (a new one if None) through ``plan`` and write it to the folder ``out``."""
    set_seed(0)
    if model is None:
        tokenizer, model = data.tokenizer(), data.tiny_model()
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        model = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    tokens, held_out = (
        data.stream(tokenizer, part).numpy().astype(np.uint32)
        for part in (texts, data.texts()[:10])
    )
    config = PatchConfig(
        f"{out}/run",
        plan={"preset": "paper", **plan},
        learning_rate=rate,
        per_device_train_batch_size=8,
        logging_steps=max(1, plan["steps"] // 20),
        save_strategy="no",
    )
    trainer = PatchTrainer(model, config, tokens, held_out, processing_class=tokenizer)
    print(f"{out}: held-out token-level loss before {trainer.evaluate()['eval_loss']:.4f}")
    trainer.train()
    print(f"{out}: held-out token-level loss {trainer.evaluate()['eval_loss']:.4f}")
    trainer.export(out)  # a plain checkpoint: AutoModelForCausalLM opens it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a name or a folder; a tiny one if left out")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--context", type=int, default=64, help="positions of a sequence")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--out", default="out/continued")
    args = parser.parse_args()

    old, new = data.texts()[10:80], data.texts()[80:]
    lengths = {"steps": args.steps, "context_length": args.context}
    if args.model is None:
        args.model = f"{args.out}/base"
        train(None, old, args.model, rate=3e-3, patch_fraction=0.0, **lengths)
    rate = args.learning_rate
    train(args.model, new, args.out, rate, patch_size=2, patch_fraction=0.5, **lengths)


if __name__ == "__main__":
    main()
