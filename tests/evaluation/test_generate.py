"""Generation: repeatable, within the context, and out of the way of a training run."""

from __future__ import annotations

import pytest
import torch

from patchtrain.errors import UsageError
from patchtrain.evaluation.generate import Sampling, complete, continue_text, encode_prompt
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


def test_complete_leaves_the_random_state_and_the_mode_alone(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    model.train()
    state = torch.get_rng_state()
    complete(model, tokenizer, PROMPTS, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


def test_greedy_takes_the_likeliest_token(model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids, _ = encode_prompt(tokenizer, "The cell", 8, CONTEXT)
    output = continue_text(model, tokenizer, ids, 8, Sampling(greedy=True))
    with torch.no_grad():
        likeliest = model.eval()(output[None]).logits.argmax(-1)[0]
    start = ids.shape[1]
    assert output[:start].tolist() == ids[0].tolist()
    assert output[start:].tolist() == likeliest[start - 1 : -1].tolist()


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
    output = continue_text(model, tokenizer, ids, 8, Sampling(greedy=True))
    completion = complete(model, tokenizer, ["The cell"], 8, Sampling(greedy=True))[0]["completion"]
    assert "The cell" + completion == tokenizer.decode(output, skip_special_tokens=True)


def test_a_long_prompt_is_cut_at_its_beginning(tokenizer) -> None:  # type: ignore[no-untyped-def]
    text = "The cell is the smallest unit of life. " * 20
    whole = tokenizer(text)["input_ids"]
    ids, cut = encode_prompt(tokenizer, text, 10, CONTEXT)
    assert ids.shape == (1, CONTEXT - 10)
    assert cut == len(whole) - (CONTEXT - 10)
    assert ids[0].tolist() == whole[cut:]
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
    assert ids.tolist() == [[tokenizer.eos_token_id]]
    assert cut == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0.*--greedy"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_k": -1}, "top-k"),
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
