"""How well a model predicts the answers in instruction data: their loss, prompts not counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from patchtrain import chat
from patchtrain.data.conversations import Conversation
from patchtrain.errors import UsageError
from patchtrain.evaluation.perplexity import check_token_ids, device_of, evaluating
from patchtrain.evaluation.uncertainty import ratio_stderr


@dataclass(frozen=True)
class AnswerLoss:
    """The summed loss of the answers of some conversations.

    ``nats``: sum of the next-token losses. ``targets``: tokens of answers, their ends included.
    ``stderr``: of the loss a token, answers taken as drawn independently (0 for a single one).
    ``cut``: answers that reach beyond the context, of which only the beginning counts.
    ``left_out``: those that begin beyond it.
    """

    nats: float
    targets: int
    answers: int
    stderr: float
    cut: int
    left_out: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.targets

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "loss": self.loss,
            "loss_stderr": self.stderr,
            "perplexity": math.exp(self.loss) if self.loss < 700 else None,
            "nats": self.nats,
            "targets": self.targets,
            "answers": self.answers,
            "cut": self.cut,
            "left_out": self.left_out,
        }


def answer_loss(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Conversation],
    context_length: int,
    progress: Callable[[int], None] | None = None,
) -> AnswerLoss:
    """Score every answer of every conversation after all that goes before it.

    The tokenizer must have a chat template (``chat.use_template``). ``progress`` is told of every
    conversation. ``UsageError``: no answer begins within the context.
    """
    device, nats, targets, cut, left_out = device_of(model), [], [], 0, 0
    with evaluating(model):
        for conversation in conversations:
            for _, ids, first in chat.answers(tokenizer, conversation.messages, conversation.where):
                first = max(first, 1)  # the very first token has nothing to be predicted from
                if first >= min(len(ids), context_length):
                    left_out += 1
                    continue
                cut += len(ids) > context_length
                ids = ids[:context_length]
                check_token_ids(model, max(ids))
                logits = model(input_ids=torch.tensor([ids], device=device)).logits
                losses = F.cross_entropy(
                    logits[0, first - 1 : -1].float(),
                    torch.tensor(ids[first:], device=device),
                    reduction="sum",
                )
                nats.append(float(losses))
                targets.append(len(ids) - first)
            if progress is not None:
                progress(1)
    if not targets:
        raise UsageError(f"no answer begins within the context of {context_length} tokens")
    return AnswerLoss(
        math.fsum(nats), sum(targets), len(targets), ratio_stderr(nats, targets), cut, left_out
    )


def answers_result(loss: AnswerLoss, files: Sequence[str], context_length: int) -> dict[str, Any]:
    """The loss of the answers in ``files`` as it stands in a file of evaluations."""
    number = "1 answer" if loss.answers == 1 else f"{loss.answers:,} answers"
    return {
        "measure": "answers",
        **loss.to_dict(),
        "context_length": context_length,
        "scored": f"{number} of {', '.join(files)}, prompts not counted",
    }
