"""Answers depend on model, conversation and decoding alone; the loss of answers is the model's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from patchtrain import chat
from patchtrain.data.conversations import Conversation
from patchtrain.errors import UsageError
from patchtrain.evaluation.answer_loss import answer_loss
from patchtrain.evaluation.answering import Decoding, answer, answer_prompts
from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.evaluation.uncertainty import ratio_stderr
from tests.evaluation.chatty import CONTEXT, save_chatty_run
from tests.evaluation.tiny import TEXT

TALK: chat.Messages = [
    {"role": "user", "content": "What is a cell?"},
    {"role": "assistant", "content": "The smallest unit of life."},
    {"role": "user", "content": "And a leaf?"},
    {"role": "assistant", "content": "It turns light into sugar."},
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    found = load_model(save_chatty_run(tmp_path_factory.mktemp("runs") / "run"))
    chat.use_template(found.tokenizer)
    return found


def test_a_batch_answers_as_each_alone(loaded: LoadedModel) -> None:
    prompts = [
        chat.render(loaded.tokenizer, [{"role": "user", "content": TEXT[:n]}], "here", prompt=True)
        for n in (40, 5, 90, 61, 17)
    ]
    alone, together = (dict(answer_prompts(loaded, prompts, Decoding(20), n)) for n in (1, 2))
    assert alone == together
    assert sorted(alone) == list(range(5))
    assert len({given.text for given in alone.values()}) > 1


def test_chance_is_seeded_and_leaves_no_trace(loaded: LoadedModel) -> None:
    state = torch.get_rng_state()
    first = answer(loaded, TALK[:1], Decoding(20, temperature=1.0, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert answer(loaded, TALK[:1], Decoding(20, temperature=1.0, seed=1)) == first
    assert answer(loaded, TALK[:1], Decoding(20, temperature=1.0, seed=2)) != first


def test_an_answer_ends_at_the_end_token(loaded: LoadedModel) -> None:
    head = loaded.model.lm_head
    bias = torch.nn.Linear(head.in_features, head.out_features)
    torch.nn.init.zeros_(bias.weight)
    torch.nn.init.zeros_(bias.bias)
    with torch.no_grad():
        bias.bias[0] = 9.0  # the end token, whatever was said
    loaded.model.lm_head = bias
    try:
        given = answer(loaded, TALK[:1], Decoding(20))
    finally:
        loaded.model.lm_head = head
    assert (given.text, given.tokens, given.stopped) == ("", 1, True)


def test_prompt_and_answer_share_the_context(loaded: LoadedModel) -> None:
    long: chat.Messages = [{"role": "user", "content": "A cell divides. " * 200}]
    given = answer(loaded, long, Decoding(1000))
    assert given.tokens <= CONTEXT // 2
    assert given.prompt_cut > 0
    whole = answer(loaded, TALK[:1], Decoding(1000))
    prompt = chat.render(loaded.tokenizer, TALK[:1], "here", prompt=True)
    room = CONTEXT - len(chat.encode(loaded.tokenizer, prompt))
    assert whole.tokens == room or whole.stopped
    assert whole.prompt_cut == 0
    with pytest.raises(UsageError, match="at least 1 token, not 0"):
        Decoding(0)


def test_the_loss_of_answers_counts_them_and_nothing_else(loaded: LoadedModel) -> None:
    found = answer_loss(loaded.model, loaded.tokenizer, [Conversation(TALK, "here")], CONTEXT)
    nats, targets = [], []
    for _, ids, first in chat.answers(loaded.tokenizer, TALK, "here"):
        labels = torch.tensor([[-100] * first + ids[first:]])
        with torch.no_grad():
            mean = loaded.model(input_ids=torch.tensor([ids]), labels=labels).loss
        targets.append(len(ids) - first)
        nats.append(float(mean) * targets[-1])
    assert (found.targets, found.answers) == (sum(targets), 2)
    assert found.nats == pytest.approx(sum(nats), rel=1e-5)
    assert found.stderr == pytest.approx(ratio_stderr(nats, targets), rel=1e-4)


def test_answers_beyond_the_context_are_cut_or_left_out(loaded: LoadedModel) -> None:
    talks = [Conversation(TALK, "here")]
    (_, one, begins), (_, _, second) = chat.answers(loaded.tokenizer, TALK, "here")
    context = len(one) - 2
    assert begins < context < second
    found = answer_loss(loaded.model, loaded.tokenizer, talks, context)
    assert (found.answers, found.cut, found.left_out) == (1, 1, 1)
    assert found.targets == context - begins
    with pytest.raises(UsageError, match="no answer begins within the context of 5 tokens"):
        answer_loss(loaded.model, loaded.tokenizer, talks, 5)
    broken = dataclasses.replace(found, nats=math.nan)
    assert math.isnan(broken.loss)


def test_the_standard_error_of_a_ratio() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    p = 0.6
    assert ratio_stderr(values, [1.0] * 5) == pytest.approx(math.sqrt(p * (1 - p) / 4))
    # What is counted twice within one item is no more certain for it.
    assert ratio_stderr([2 * v for v in values], [2.0] * 5) == pytest.approx(
        ratio_stderr(values, [1.0] * 5)
    )
    assert ratio_stderr([3.0], [2.0]) == 0
