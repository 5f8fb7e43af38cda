"""Conversations as text and tokens: the chat template, and where the answers stand.

A conversation is a list of messages, ``{"role": ..., "content": ...}``, with the roles system, user
and assistant. Most tuned models bring a template that turns one into text. A model that was only
pretrained has none: it gets the plain one here, which uses no token that the tokenizer lacks, so
that the embeddings stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from patchtrain.errors import PatchtrainError, UsageError, one_line

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")

# Answers end in the end-of-text token, which is what a pretrained model stops at. What is between
# the generation marks is what an answer's loss is taken from.
PLAIN_TEMPLATE = """\
{%- if bos_token is defined and bos_token -%}{{ bos_token }}{%- endif -%}
{%- for message in messages -%}
{{- '' if loop.first else '\\n\\n' -}}
{{- '### ' + (message['role'] | capitalize) + ':\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- (message['content'] | trim) + eos_token -}}{%- endgeneration -%}
{%- else -%}{{- message['content'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n### Assistant:\\n' -}}{%- endif -%}"""


def use_template(tokenizer: Any) -> str:
    """Give a tokenizer without a chat template the plain one; says whose template it has now.

    ``UsageError``: it needs the plain one and has no end-of-text token to end an answer with.
    """
    if tokenizer.chat_template == PLAIN_TEMPLATE:
        return "patchtrain's plain one"
    if tokenizer.chat_template:
        return "the tokenizer's own"
    if tokenizer.eos_token is None:
        raise UsageError(
            "the tokenizer has neither a chat template nor an EOS token, so nothing can end an "
            "answer; set one of them in its tokenizer_config.json"
        )
    tokenizer.chat_template = PLAIN_TEMPLATE
    return "patchtrain's plain one"


def render(tokenizer: Any, messages: Messages, where: object, prompt: bool = False) -> str:
    """A conversation as text, with ``prompt`` up to where the next answer begins.

    ``PatchtrainError``: the template refuses it, with ``where`` it comes from.
    """
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template may raise anything
        raise PatchtrainError(
            f"{where}: the model's chat template refuses this conversation: {one_line(error)}"
        ) from error
    return str(text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of rendered text, to which nothing is added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def answers(
    tokenizer: Any, messages: Messages, where: object
) -> Iterator[tuple[Messages, list[int], int]]:
    """Every answer of a conversation with what goes before it.

    Yields ``(messages, ids, first)``: the messages up to the answer, their token ids, and the
    position in them from which the answer's own tokens stand. The answer begins where prompt and
    whole differ, as the two may meet within a token, and ends with its end-of-text token: the line
    end that some templates put after it is not the model's to write.
    """
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode(tokenizer, render(tokenizer, messages[:index], where, prompt=True))
        part = messages[: index + 1]
        ids = encode(tokenizer, render(tokenizer, part, where))
        first = _common(prompt, ids)
        if tokenizer.eos_token_id in ids[first:]:
            ids = ids[: ids.index(tokenizer.eos_token_id, first) + 1]
        yield part, ids, first


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens at which an answer ends: the tokenizer's EOS, and what the model itself names."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return sorted({token for token in found if token is not None})
