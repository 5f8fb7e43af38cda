"""The plain chat template, and where the answers of a conversation stand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import chat
from patchtrain.errors import PatchtrainError, UsageError
from tests.evaluation.tiny import tiny_tokenizer

TALK: chat.Messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is a cell? "},
    {"role": "assistant", "content": "\nA unit of life."},
    {"role": "user", "content": "And a leaf?"},
    {"role": "assistant", "content": "It makes sugar."},
]
OWN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}" \
      "{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip


def tokenizer(template: str | None = None, **special: str) -> Any:
    made = tiny_tokenizer()
    made.chat_template = template
    for name, token in special.items():
        setattr(made, name, token)
    return made


def test_the_plain_template_adds_no_token_and_is_used_only_where_there_is_none() -> None:
    plain = tokenizer()
    size = len(plain)
    assert chat.use_template(plain) == "patchtrain's plain one"
    assert chat.use_template(plain) == "patchtrain's plain one"
    assert len(plain) == size
    assert chat.render(plain, TALK, "here") == (
        "### System:\nBe brief.\n\n### User:\nWhat is a cell?\n\n### Assistant:\nA unit of life."
        "<|end|>\n\n### User:\nAnd a leaf?\n\n### Assistant:\nIt makes sugar.<|end|>"
    )
    own = tokenizer(OWN)
    assert chat.use_template(own) == "the tokenizer's own"
    assert own.chat_template == OWN


def test_a_bos_token_begins_the_text() -> None:
    plain = tokenizer(bos_token="<|end|>")
    chat.use_template(plain)
    assert chat.render(plain, TALK[:2], "here").startswith("<|end|>### System:")


def test_without_an_end_there_is_no_answer() -> None:
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(UsageError, match="neither a chat template nor an EOS token"):
        chat.use_template(endless)


@pytest.mark.parametrize("template", [None, OWN])
def test_answers_end_in_the_end_token_and_follow_their_prompt(template: str | None) -> None:
    made = tokenizer(template)
    chat.use_template(made)
    found = list(chat.answers(made, TALK, "here"))
    assert [part for part, _, _ in found] == [TALK[:3], TALK[:5]]
    for part, ids, first in found:
        prompt = chat.encode(made, chat.render(made, part[:-1], "here", prompt=True))
        assert ids[:first] == prompt[:first]
        written = part[-1]["content"]
        written = written.strip() if template is None else written
        assert made.decode(ids[len(prompt) :]) == f"{written}<|end|>"


def test_the_generation_marks_cover_the_answers_and_nothing_else() -> None:
    plain = tokenizer()
    chat.use_template(plain)
    done = plain.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    expected = [0] * len(done["input_ids"])
    for _, ids, first in chat.answers(plain, TALK, "here"):
        expected[first : len(ids)] = [1] * (len(ids) - first)
    assert done["assistant_masks"] == expected


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_what_stands_before_an_answer_does_not_depend_on_what_follows(
    pairs: list[tuple[str, str]],
) -> None:
    plain = tokenizer()
    chat.use_template(plain)
    talk = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    whole = chat.render(plain, talk, "here")
    for part, ids, first in chat.answers(plain, talk, "here"):
        assert whole.startswith(chat.render(plain, part, "here"))
        assert 0 < first < len(ids)


def test_a_template_that_refuses_is_named_with_the_place() -> None:
    strict = tokenizer("{{ raise_exception('no system messages') }}")
    with pytest.raises(PatchtrainError, match=r"a.jsonl: line 3: .* refuses .*: no system mess"):
        chat.render(strict, TALK, "a.jsonl: line 3")


def test_stops_are_the_tokenizers_and_the_models() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 7]))
    assert chat.stop_ids(model, tokenizer()) == [0, 5, 7]
    model.generation_config.eos_token_id = 5
    assert chat.stop_ids(model, tokenizer()) == [0, 5]
    assert chat.stop_ids(object(), tokenizer()) == [0]
