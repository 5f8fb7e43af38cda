"""What a model answers in a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from patchtrain import chat
from patchtrain.errors import UsageError
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.perplexity import check_token_ids, device_of, evaluating


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
        check_token_ids(loaded.model, max(ids, default=0))
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
    padding = stops[0] if stops else 0
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None,
                                "top_k": None}  # fmt: skip
    if decoding.temperature > 0:
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": 1.0,
                    "top_k": 0}  # fmt: skip
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model):
        torch.manual_seed(decoding.seed)
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            eos_token_id=stops or None,
            pad_token_id=padding,
            repetition_penalty=1.0,  # a model may carry another
            use_cache=True,
            **sampling,
        )
    answers = []
    for row in output[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in stops), None)
        written = row if end is None else row[: end + 1]
        text = tokenizer.decode(written, skip_special_tokens=True)
        answers.append(Answer(text, len(written), end is not None, cut))
    return answers
