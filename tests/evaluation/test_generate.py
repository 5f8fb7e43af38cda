"""Generation: repeatable, within the context, and out of the way of a training run."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from patchtrain.errors import UsageError
from patchtrain.evaluation.generate import (
    SAMPLES,
    Sampling,
    Streamed,
    before_stop,
    complete,
    completion,
    continue_prompts,
    continue_rows,
    encode_prompt,
)
from tests.evaluation.stops import stop_within
from tests.evaluation.tiny import CONTEXT, tiny_model, tiny_tokenizer

PROMPTS = ["The cell", "", "Le café est"]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):  # type: ignore[no-untyped-def]
    return tiny_model(len(tokenizer))


def test_completions_repeat_and_differ_by_seed(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    first = complete(model, tokenizer, PROMPTS, 12)
    assert [row["prompt"] for row in first] == PROMPTS
    assert all(isinstance(row["completion"], str) for row in first)
    assert first == complete(model, tokenizer, PROMPTS, 12)
    assert first != complete(model, tokenizer, PROMPTS, 12, seed=1)
    assert first == complete(model, tokenizer, PROMPTS, 12, SAMPLES)


def test_complete_leaves_the_random_state_and_the_mode_alone(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    model.train()
    state = torch.get_rng_state()
    complete(model, tokenizer, PROMPTS, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


GREEDY = Sampling(greedy=True)


def test_greedy_takes_the_likeliest_token(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, _ = encode_prompt(tokenizer, "The cell", 8, CONTEXT)
    (new,) = continue_rows(model, tokenizer, [ids], 8, GREEDY)
    with torch.no_grad():
        likeliest = model.eval()(torch.tensor([ids + new])).logits.argmax(-1)[0]
    assert new == likeliest[len(ids) - 1 : -1].tolist()


def test_a_batch_writes_what_each_row_writes_alone(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = [encode_prompt(tokenizer, text, 8, CONTEXT)[0] for text in (*PROMPTS, "A leaf turns")]
    alone = [continue_rows(model, tokenizer, [row], 8, GREEDY)[0] for row in rows]
    assert continue_rows(model, tokenizer, rows, 8, GREEDY) == alone
    found = list(continue_prompts(model, tokenizer, rows, 8, GREEDY, batch_size=3))
    assert [(row, sample) for row, sample, _ in found] == [(n, 0) for n in range(len(rows))]
    assert [one for _, _, one in found] == [
        completion(tokenizer, row, new, GREEDY) for row, new in zip(rows, alone, strict=True)
    ]


def test_samples_come_prompt_by_prompt(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = [encode_prompt(tokenizer, text, 8, CONTEXT)[0] for text in ("The cell", "A leaf")]
    torch.manual_seed(3)
    found = list(continue_prompts(model, tokenizer, rows, 8, Sampling(), samples=3, batch_size=2))
    assert [found[:2] for found in found] == [(row, n) for row in range(2) for n in range(3)]
    assert len({one.text for _, _, one in found}) > 2


def test_more_beams_find_a_text_at_least_as_likely(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, _ = encode_prompt(tokenizer, "The cell", 8, CONTEXT)

    def likelihood(new: list[int]) -> float:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids + new])).logits[0].log_softmax(-1)
        return float(sum(logits[len(ids) - 1 + n, token] for n, token in enumerate(new)))

    (greedy,) = continue_rows(model, tokenizer, [ids], 6, GREEDY)
    (best,) = continue_rows(model, tokenizer, [ids], 6, Sampling(num_beams=8))
    assert len(best) == len(greedy) == 6
    assert likelihood(best) >= likelihood(greedy)


def test_a_stop_text_ends_a_row_and_is_not_in_it(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = [encode_prompt(tokenizer, text, 12, CONTEXT)[0] for text in ("The cell", "A leaf turns")]
    whole = [one.text for _, _, one in continue_prompts(model, tokenizer, rows, 12, GREEDY)]
    stop = stop_within(whole[0])
    cut = Sampling(greedy=True, stop=(stop,))
    for size in (1, 2):
        found = [
            one for _, _, one in continue_prompts(model, tokenizer, rows, 12, cut, batch_size=size)
        ]
        assert found[0].text == whole[0][: whole[0].index(stop)]
        assert found[0].finish_reason == "stop"
        assert found[0].tokens < 12
        assert found[1].text == before_stop(whole[1], (stop,))
    # The model's end token after a stop text is padding of the batch, not a token it wrote.
    alone = completion(tokenizer, rows[0], continue_rows(model, tokenizer, rows[:1], 12, cut)[0],
                       cut)  # fmt: skip
    assert found[0] == alone


@given(st.lists(st.text("abc", max_size=5), max_size=8), st.lists(st.text("abc", min_size=1)))
def test_streaming_shows_exactly_what_comes_before_a_stop(
    parts: list[str], stop: list[str]
) -> None:
    shown: list[str] = []
    streamed = Streamed(tiny_tokenizer_once(), shown.append, stop=stop)
    whole = ""
    for part in parts:
        if not any(one in whole for one in stop):  # what comes after the first stop is not there
            whole += part
        streamed.on_finalized_text(part)
        assert before_stop(whole, stop).startswith("".join(shown))
    streamed.on_finalized_text("", stream_end=True)
    assert "".join(shown) == before_stop(whole, stop)


def test_a_stop_that_is_whole_decides_over_a_longer_one_that_began_before() -> None:
    shown: list[str] = []
    streamed = Streamed(tiny_tokenizer_once(), shown.append, stop=["a", "cac"])
    for part in ("ca", "c"):
        streamed.on_finalized_text(part)
    assert "".join(shown) == "c"


@cache
def tiny_tokenizer_once() -> Any:
    return tiny_tokenizer()


def test_streaming_shows_the_prompt_and_what_was_written(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, _ = encode_prompt(tokenizer, "Le café est", 8, CONTEXT)
    (new,) = continue_rows(model, tokenizer, [ids], 8, GREEDY)
    text = completion(tokenizer, ids, new, GREEDY).text
    for prompt in (True, False):
        shown: list[str] = []
        streamed = Streamed(tokenizer, shown.append, prompt, stop=("est",))
        again = continue_rows(model, tokenizer, [ids], 8, GREEDY, streamer=streamed)
        assert again == [new]
        assert "".join(shown) == ("Le café est" if prompt else "") + before_stop(text, ("est",))


def test_the_model_chooses_what_is_not_given() -> None:
    own = SimpleNamespace(generation_config=GenerationConfig(temperature=0.6, top_k=7))
    assert Sampling.of(own, top_k=3, top_p=None) == Sampling(temperature=0.6, top_k=3)
    assert Sampling.of(None) == Sampling()


def test_the_defaults_are_those_of_transformers() -> None:
    theirs = GenerationConfig._get_default_generation_params()
    ours = asdict(Sampling())
    for name in ("temperature", "top_p", "top_k", "repetition_penalty", "num_beams"):
        assert ours[name] == theirs[name], name


def test_generation_stops_at_the_end_of_a_document(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    # Tied to nothing else: the end token's logit is made to win everywhere.
    model.lm_head = torch.nn.Linear(16, len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[tokenizer.eos_token_id] = 50.0
    assert complete(model, tokenizer, ["The cell"], 12) == [
        {"prompt": "The cell", "completion": ""}
    ]


def test_completion_keeps_its_leading_space(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, _ = encode_prompt(tokenizer, "The cell", 8, CONTEXT)
    (new,) = continue_rows(model, tokenizer, [ids], 8, GREEDY)
    found = complete(model, tokenizer, ["The cell"], 8, GREEDY)[0]["completion"]
    assert "The cell" + found == tokenizer.decode(ids + new, skip_special_tokens=True)
    assert completion(tokenizer, ids, new, GREEDY).text == found


def test_a_long_prompt_is_cut_at_its_beginning(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "The cell is the smallest unit of life. " * 20
    whole = tokenizer(text)["input_ids"]
    ids, cut = encode_prompt(tokenizer, text, 10, CONTEXT)
    assert len(ids) == CONTEXT - 10
    assert cut == len(whole) - (CONTEXT - 10)
    assert ids == whole[cut:]
    assert encode_prompt(tokenizer, text, 10, None)[1] == 0


def test_samples_never_fail_for_want_of_room(model, tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    asked = []
    original = model.generate

    def generate(ids, **arguments):  # type: ignore[no-untyped-def]
        asked.append((ids.shape[1], arguments["max_new_tokens"]))
        return original(ids, **arguments)

    monkeypatch.setattr(model, "generate", generate)
    (row,) = complete(model, tokenizer, ["The cell " * 50], 10 * CONTEXT)
    assert row["completion"]
    assert asked == [(CONTEXT // 2, CONTEXT // 2)]


def test_an_empty_prompt_starts_a_document(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, cut = encode_prompt(tokenizer, "", 4, CONTEXT)
    assert ids == [tokenizer.eos_token_id]
    assert cut == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0.*--greedy"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_k": -1}, "top-k"),
        ({"min_p": 1.1}, "min-p"),
        ({"repetition_penalty": 0.0}, "repetition penalty"),
        ({"num_beams": 0}, "beams"),
        ({"stop": ("",)}, "stop text"),
    ],
)
def test_impossible_sampling_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**values)  # type: ignore[arg-type]


def test_impossible_lengths_are_refused(tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="at least 1"):
        encode_prompt(tokenizer, "a", 0, CONTEXT)
    with pytest.raises(UsageError, match=f"at most {CONTEXT - 1}"):
        encode_prompt(tokenizer, "a", CONTEXT, CONTEXT)


def test_a_foreign_tokenizer_is_named(tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match="outside the model's vocabulary of 8"):
        complete(tiny_model(8), tokenizer, ["The cell"], 4)
