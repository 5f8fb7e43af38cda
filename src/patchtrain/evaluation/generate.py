"""Text from a model: streamed for a reader, or completions of a few prompts for a run's folder.

A prompt and its completion share the model's context. A prompt that leaves too little room is cut
at its beginning, so that the model always continues the end of what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patchtrain.errors import UsageError
from patchtrain.evaluation.perplexity import check_token_ids, device_of, evaluating


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: nucleus sampling, or the likeliest token if ``greedy``.

    ``top_k`` 0 and ``top_p`` 1.0 switch those cuts off.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UsageError(
                f"the temperature must be above 0, not {self.temperature}; "
                "for the likeliest token use --greedy"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise UsageError(f"top-k must be 0 (off) or more, not {self.top_k}")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``model.generate``, all set: a model may carry other defaults."""
        if self.greedy:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def encode_prompt(
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    context_length: int | None,
    whole: bool = False,
) -> tuple[torch.Tensor, int]:
    """Token ids ``(1, S)`` of a prompt, int64, and how many were cut off at its beginning.

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
    return torch.tensor([ids[cut:]]), cut


def continue_text(
    model: Any,
    tokenizer: Any,
    input_ids: torch.Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    streamer: Any = None,
) -> torch.Tensor:
    """Prompt and completion as ids ``(S + new,)`` on the CPU; stops at the EOS token.

    Draws from the global random state. The model is put back into the mode it was in.
    """
    check_token_ids(model, int(input_ids.max()))
    ids = input_ids.to(device_of(model))
    eos = tokenizer.eos_token_id
    with evaluating(model):
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=eos,
            pad_token_id=eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            use_cache=True,
            streamer=streamer,
            **sampling.arguments(),
        )
    return output[0].cpu()


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    context_length: int | None = None,
    seed: int = 0,
) -> list[dict[str, str]]:
    """``[{"prompt": ..., "completion": ...}, ...]``, one for each prompt.

    The result depends on ``seed`` only and leaves the global random state as it was, so that a
    training run may call it at any time. ``context_length``: see ``encode_prompt``; the default is
    the model's ``max_position_embeddings``. A completion takes at most half of it.
    """
    sampling = sampling or Sampling()
    if context_length is None:
        context_length = getattr(model.config, "max_position_embeddings", None)
    if context_length is not None:
        max_new_tokens = min(max_new_tokens, max(1, context_length // 2))
    device = device_of(model)
    results = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for prompt in prompts:
            ids, _ = encode_prompt(tokenizer, prompt, max_new_tokens, context_length)
            output = continue_text(model, tokenizer, ids, max_new_tokens, sampling)
            results.append({"prompt": prompt, "completion": new_text(tokenizer, ids[0], output)})
    return results


def new_text(tokenizer: Any, prompt_ids: torch.Tensor, output_ids: torch.Tensor) -> str:
    """What was generated, of prompt and completion ``(S + new,)``, without special tokens."""
    # Decoded on its own, a completion may lose its leading space: take it off the whole text.
    whole = tokenizer.decode(output_ids, skip_special_tokens=True)
    before = tokenizer.decode(prompt_ids, skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(output_ids[len(prompt_ids) :], skip_special_tokens=True)
