"""From conversations to the rows that SFTTrainer reads, so that only answers are learned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from patchtrain import chat
from patchtrain.data.conversations import Conversation
from patchtrain.errors import UsageError

HELD_OUT_MOST = 1000


@dataclass(frozen=True)
class Rows:
    """What is trained on.

    ``marked``: a row is a whole conversation whose answers the template marks (``messages``);
    otherwise a row is one answer after all that goes before it (``prompt``, ``completion``).
    ``cut``: rows that reach beyond the context. ``left_out``: answers that begin beyond it.
    """

    rows: list[dict[str, chat.Messages]]
    marked: bool
    cut: int
    left_out: int


def split_off(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """``(trained, held out)``: a ``share`` of the conversations, at most 1,000, chosen by seed.

    ``UsageError``: a share that is none, or one that leaves nothing to train on.
    """
    if not 0 <= share < 1:
        raise UsageError(f"the held-out share must be at least 0 and below 1, not {share:g}")
    number = min(max(1, round(share * len(conversations))), HELD_OUT_MOST) if share else 0
    if number >= len(conversations):
        raise UsageError(
            f"there are too few conversations to hold some out ({len(conversations)}); "
            "give more, or --validation-fraction 0"
        )
    chosen = set(Random(seed).sample(range(len(conversations)), number))
    trained = [row for index, row in enumerate(conversations) if index not in chosen]
    return trained, [conversations[index] for index in sorted(chosen)]


def training_rows(
    conversations: Sequence[Conversation], tokenizer: Any, context_length: int
) -> Rows:
    """The rows of ``conversations``, those without a target within the context left out.

    ``UsageError``: none is left.
    """
    marked = marks_answers(tokenizer, conversations[0])
    rows: list[dict[str, chat.Messages]] = []
    cut = left_out = 0
    for conversation in conversations:
        inside, longest = [], 0
        for part, ids, first in chat.answers(tokenizer, conversation.messages, conversation.where):
            if first >= min(len(ids), context_length):
                left_out += 1
                continue
            longest = len(ids)
            inside.append({"prompt": part[:-1], "completion": part[-1:]})
            cut += not marked and longest > context_length
        if marked and inside:
            rows.append({"messages": conversation.messages})
            cut += longest > context_length
        elif not marked:
            rows += inside
    if not rows:
        raise UsageError(f"no answer begins within the context of {context_length} tokens")
    return Rows(rows, marked, cut, left_out)


def marks_answers(tokenizer: Any, conversation: Conversation) -> bool:
    """Whether the chat template itself marks the answers, ends included, and nothing else.

    Tried on a conversation: a template may have the marks and leave out where an answer ends, and
    a model that is trained so never stops.
    """
    template = tokenizer.chat_template
    template = template.get("default", "") if isinstance(template, dict) else template
    if not re.search(r"\{%-?\s*generation\s*-?%\}", template):
        return False
    done = tokenizer.apply_chat_template(
        conversation.messages, return_dict=True, return_assistant_tokens_mask=True
    )
    expected = [0] * len(done["input_ids"])
    for _, ids, first in chat.answers(tokenizer, conversation.messages, conversation.where):
        if done["input_ids"][: len(ids)] != ids:
            return False  # an answer is rendered otherwise once another message follows
        expected[first : len(ids)] = [1] * (len(ids) - first)
    return bool(done["assistant_masks"] == expected)
