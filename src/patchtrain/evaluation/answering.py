"""What a model answers in a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from patchtrain import chat
from patchtrain.errors import UsageError
from patchtrain.evaluation.generate import Sampling, continue_rows
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.perplexity import device_of


@dataclass(frozen=True)
class Decoding:
    """How an answer is written: the likeliest token each time, or with a temperature by chance."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UsageError(f"an answer has at least 1 token, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    ``tokens``: how many. ``stopped``: it came to an end by itself. ``prompt_cut``: tokens at the
    beginning of the conversation that did not fit into the context.
    """

    text: str
    tokens: int
    stopped: bool
    prompt_cut: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def answer(loaded: LoadedModel, messages: chat.Messages, decoding: Decoding) -> Answer:
    """The next answer in a conversation, whose tokenizer must have a chat template.

    It depends on model, messages and decoding alone, and the global random state stays as it was.
    """
    text = chat.render(loaded.tokenizer, messages, "this conversation", prompt=True)
    ((_, given),) = answer_prompts(loaded, [text], decoding)
    return given


def answer_prompts(
    loaded: LoadedModel, prompts: Sequence[str], decoding: Decoding, batch_size: int | None = None
) -> Iterator[tuple[int, Answer]]:
    """The answers to conversations that are rendered already, each with its prompt's index.

    They come as they are ready, ``batch_size`` at a time. Prompt and answer share the context: a
    prompt keeps at least its last half, and the answer gets what is left, up to ``max_new_tokens``.
    Prompts of like length go together, padded on their left; by chance (a temperature) each is
    answered on its own, so that the others do not change it. The default batch is 16 on a GPU, 1
    elsewhere.
    """
    batch_size = batch_size or (16 if device_of(loaded.model).type == "cuda" else 1)
    if decoding.temperature > 0:
        batch_size = 1
    context = loaded.context_length
    encoded = [chat.encode(loaded.tokenizer, prompt) for prompt in prompts]
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(encoded[index])):
        ids, new = encoded[index], decoding.max_new_tokens
        if context is not None and len(ids) + new > context:
            # It gets fewer tokens than the others, so it is answered alone.
            new = min(new, max(context // 2, context - len(ids)))
            cut = max(0, len(ids) - (context - new))
            yield index, _generate(loaded, [ids[cut:]], new, decoding, cut)[0]
        else:
            batch.append(index)
            if len(batch) == batch_size:
                yield from _answered(loaded, batch, encoded, decoding)
                batch = []
    if batch:
        yield from _answered(loaded, batch, encoded, decoding)


def _answered(
    loaded: LoadedModel, batch: list[int], encoded: list[list[int]], decoding: Decoding
) -> Iterator[tuple[int, Answer]]:
    rows = [encoded[index] for index in batch]
    found = _generate(loaded, rows, decoding.max_new_tokens, decoding, 0)
    yield from zip(batch, found, strict=True)


def _generate(
    loaded: LoadedModel, rows: list[list[int]], new: int, decoding: Decoding, cut: int
) -> list[Answer]:
    """Answers of up to ``new`` tokens to rows of token ids."""
    model, tokenizer, device = loaded.model, loaded.tokenizer, device_of(loaded.model)
    stops = chat.stop_ids(model, tokenizer)
    sampling = Sampling(greedy=True)
    if decoding.temperature > 0:
        sampling = Sampling(temperature=decoding.temperature, top_k=0)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(decoding.seed)
        found = continue_rows(model, tokenizer, rows, new, sampling, stops)
    answers = []
    for written in found:
        text = tokenizer.decode(written, skip_special_tokens=True)
        stopped = bool(written) and written[-1] in stops
        answers.append(Answer(text, len(written), stopped, cut))
    return answers
