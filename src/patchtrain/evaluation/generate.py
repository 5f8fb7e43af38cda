"""Text from a model: streamed for a reader, by batches for a file, or samples for a run's folder.

A prompt and its completion share the model's context. A prompt that leaves too little room is cut
at its beginning, so that the model always continues the end of what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, TextStreamer

from patchtrain.errors import UsageError
from patchtrain.evaluation.perplexity import check_token_ids, device_of, evaluating
from patchtrain.modeling import longest_context


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in the names and with the defaults of ``GenerationConfig``.

    By chance, or the likeliest token if ``greedy``, or with ``num_beams`` > 1 by beam search.
    ``top_k`` 0, ``top_p`` 1.0, ``min_p`` None and ``repetition_penalty`` 1.0 switch those off.
    A completion ends before the first of the texts in ``stop``.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    greedy: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(
                f"the temperature must be above 0, not {self.temperature}; "
                "for the likeliest token use --greedy"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top-k must be 0 (off) or more, not {self.top_k}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p must be from 0 to 1, not {self.min_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(
                f"the repetition penalty must be above 0 (1 is none), not {self.repetition_penalty}"
            )
        if self.num_beams < 1:
            raise UsageError(f"the number of beams must be at least 1, not {self.num_beams}")
        if "" in self.stop:
            raise UsageError("a stop text must not be empty")

    @classmethod
    def of(cls, model: Any, **given: Any) -> Sampling:
        """From what is ``given``; what is None there is the model's own, else the default.

        A model's own choice is in its ``generation_config.json``.
        """
        own = getattr(model, "generation_config", None)
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
            if given.get(name) is None:
                given[name] = getattr(own, name, None)
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def by_chance(self) -> bool:
        return not self.greedy and self.num_beams == 1

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``model.generate``, all set: a model may carry other defaults."""
        values = asdict(self)
        chance = ("temperature", "top_p", "top_k", "min_p")
        return {
            "do_sample": self.by_chance,
            **{name: values[name] if self.by_chance else None for name in chance},
            "repetition_penalty": self.repetition_penalty,
            "num_beams": self.num_beams,
        }


# What a run's samples are drawn with: the tail of a small model's distribution is mostly noise.
SAMPLES = Sampling(temperature=0.8, top_p=0.95, top_k=0)


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    ``tokens`` are the new ones, an end token included. ``finish_reason``: ``"stop"`` at an end
    token or a stop text (which is not in ``text``), ``"length"`` where the tokens ran out.
    """

    text: str
    tokens: int
    finish_reason: str


class Streamed(TextStreamer):
    """Gives text to ``show`` as it is generated, and holds back what may become a stop text.

    The prompt is shown too, if it is wanted: decoded as one text, nothing is lost between the two.
    """

    def __init__(
        self,
        tokenizer: Any,
        show: Callable[[str], None],
        prompt: bool = False,
        stop: Sequence[str] = (),
    ) -> None:
        super().__init__(tokenizer, skip_prompt=not prompt, skip_special_tokens=True)
        self.show, self.stop = show, stop
        self._of_prompt = 0  # characters still to come that are the prompt's, where nothing stops
        self._held = ""
        self._ended = False

    def put(self, value: torch.Tensor) -> None:
        if self.next_tokens_are_prompt and not self.skip_prompt:
            ids = value[0] if value.dim() > 1 else value
            self._of_prompt = len(self.tokenizer.decode(ids, skip_special_tokens=True))
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        free, text = text[: self._of_prompt], text[self._of_prompt :]
        self._of_prompt -= len(free)
        if free:
            self.show(free)
        if self._ended:
            return
        text = self._held + text
        whole = before_stop(text, self.stop)
        self._ended = len(whole) < len(text)
        keep = 0 if self._ended or stream_end else _begun(text, self.stop)
        self._held = whole[len(whole) - keep :]
        if shown := whole[: len(whole) - keep]:
            self.show(shown)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first stop text in it, or all of it."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


def _begun(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of ``text`` begin a stop text."""
    lengths = (n for one in stop for n in range(1, len(one)) if text.endswith(one[:n]))
    return max(lengths, default=0)


class _StopTexts(StoppingCriteria):
    """Ends a row whose new tokens hold a stop text, also one in the middle of a token."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt: int) -> None:
        self.tokenizer, self.stop, self.prompt = tokenizer, stop, prompt

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :], skip_special_tokens=True)
        found = [any(one in text for one in self.stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def encode_prompt(
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    context_length: int | None,
    whole: bool = False,
) -> tuple[list[int], int]:
    """Token ids of a prompt, and how many were cut off at its beginning.

    A ``whole`` prompt, as a chat template makes it, has all its special tokens already. An empty
    prompt becomes the BOS or EOS token. At most ``context_length - max_new_tokens`` tokens
    are kept. ``UsageError`` if that leaves none.
    """
    if max_new_tokens < 1:
        raise UsageError(f"the number of new tokens must be at least 1, not {max_new_tokens}")
    ids = list(tokenizer(prompt, add_special_tokens=not whole, verbose=False)["input_ids"])
    if not ids:
        start = tokenizer.bos_token_id
        start = tokenizer.eos_token_id if start is None else start
        if start is None:
            raise UsageError("the prompt is empty and the tokenizer has no BOS or EOS token")
        ids = [start]
    cut = 0
    if context_length is not None:
        room = context_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"{max_new_tokens} new tokens leave no room for a prompt in the context of "
                f"{context_length}: ask for at most {context_length - 1}"
            )
        cut = max(0, len(ids) - room)
    return ids[cut:], cut


def continue_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] | None = None,
    samples: int = 1,
    streamer: Any = None,
) -> list[list[int]]:
    """The new tokens of each row of token ids, ``samples`` of each, rows in their order.

    The rows are one batch, padded on their left. A row ends with the first of the tokens ``ends``
    (default: the tokenizer's EOS), which is kept. Draws from the global random state. The model is
    put back into the mode it was in.
    """
    check_token_ids(model, max(max(row, default=0) for row in rows))
    device = device_of(model)
    ends = _ends(tokenizer) if ends is None else ends
    padding = tokenizer.pad_token_id
    padding = (ends[0] if ends else 0) if padding is None else padding
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    criteria = [_StopTexts(tokenizer, sampling.stop, width)] if sampling.stop else None
    with evaluating(model):
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(ends) or None,
            pad_token_id=padding,
            use_cache=True,
            num_return_sequences=samples,
            stopping_criteria=criteria,
            streamer=streamer,
            **sampling.arguments(),
        )
    found = []
    for row in output[:, width:].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        row = row[: end + 1]
        while row[1:] and row[-1] == padding and padding not in ends:  # it ended before the others
            row.pop()
        found.append(row)
    return found


def completion(
    tokenizer: Any,
    prompt: Sequence[int],
    new: list[int],
    sampling: Sampling,
    ends: Sequence[int] | None = None,
) -> Completion:
    """The text of ``new`` tokens after ``prompt``, and why it ends."""
    ends = _ends(tokenizer) if ends is None else ends
    text = _new_text(tokenizer, prompt, new)
    shown = before_stop(text, sampling.stop)
    by_text, by_token = len(shown) < len(text), bool(new) and new[-1] in ends
    tokens = len(new) - (by_text and by_token)  # where both, the token is the batch's padding
    return Completion(shown, tokens, "stop" if by_text or by_token else "length")


def continue_prompts(
    model: Any,
    tokenizer: Any,
    rows: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] | None = None,
    samples: int = 1,
    batch_size: int = 1,
) -> Iterator[tuple[int, int, Completion]]:
    """The completions of rows of token ids, as ``(row, sample, completion)``, in their order.

    Sampled text depends on the batch a row is in: the same seed and ``batch_size`` repeat it.
    """
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        new = continue_rows(model, tokenizer, batch, max_new_tokens, sampling, ends, samples)
        for place, ids in enumerate(new):
            row, sample = divmod(place, samples)
            found = completion(tokenizer, batch[row], ids, sampling, ends)
            yield first + row, sample, found


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    sampling: Sampling = SAMPLES,
    seed: int = 0,
) -> list[dict[str, str]]:
    """``[{"prompt": ..., "completion": ...}, ...]``, one for each prompt.

    The result depends on ``seed`` only and leaves the global random state as it was, so that a
    training run may call it at any time. A completion takes at most half of the context, which is
    the model's ``max_position_embeddings``.
    """
    context_length = longest_context(model)
    if context_length is not None:
        max_new_tokens = min(max_new_tokens, max(1, context_length // 2))
    device = device_of(model)
    results = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompt in prompts:
            ids, _ = encode_prompt(tokenizer, prompt, max_new_tokens, context_length)
            (new,) = continue_rows(model, tokenizer, [ids], max_new_tokens, sampling)
            results.append({"prompt": prompt, "completion": _new_text(tokenizer, ids, new)})
    return results


def _ends(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _new_text(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    # Decoded on its own, a completion may lose its leading space: take it off the whole text.
    whole = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    before = tokenizer.decode(list(prompt), skip_special_tokens=True)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(list(new), skip_special_tokens=True))
