"""What Trainer's loader reads: one item is one optimizer step, already this process's share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from patchtrain.data.batches import PlanBatches
from patchtrain.errors import PatchtrainError


class Steps(Dataset):
    """Item i is what this process reads in optimizer step i."""

    def __init__(self, batches: PlanBatches, process: int, vocabulary: int) -> None:
        self.batches = batches
        self.process = process
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        inputs = self.batches.inputs(step, self.process)
        ids = inputs["input_ids"]
        if int(ids.max()) >= self.vocabulary:
            raise PatchtrainError(
                f"token id {ids.max()} in step {step} is beyond the model's vocabulary of "
                f"{self.vocabulary}: the tokens are damaged, or of another tokenizer"
            )
        return {name: torch.from_numpy(value) for name, value in inputs.items()}


class FromCurrentStep(Sampler):
    """All steps from the trainer's current one on."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return len(self.trainer.train_dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.trainer.state.global_step, len(self)))
