"""Instruction tuning: a pretrained model learns to answer, with TRL's SFTTrainer."""
