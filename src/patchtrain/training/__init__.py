"""PatchTrainer and PatchConfig: all stages of a plan in one transformers Trainer."""
