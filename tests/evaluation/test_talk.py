"""A conversation: what the model reads of it, what it forgets, where the tuned model is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchtrain import chat
from patchtrain.data.conversations import read_conversations
from patchtrain.errors import UsageError
from patchtrain.evaluation.answering import Decoding, answer
from patchtrain.evaluation.generate import Sampling
from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.evaluation.talk import Talk, find_tuned
from tests.evaluation.chatty import CONTEXT, save_chatty_run
from tests.evaluation.tiny import save_tiny_model, save_tiny_run

GREEDY = Sampling(greedy=True)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    found = load_model(save_chatty_run(tmp_path_factory.mktemp("runs") / "run"))
    chat.use_template(found.tokenizer)
    return found


def read_by_the_model(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that the model is given from now on, as text."""
    seen: list[str] = []
    original = loaded.model.generate

    def generate(ids: Any, **options: Any) -> Any:
        seen.append(loaded.tokenizer.decode(ids[0]))
        return original(ids, **options)

    monkeypatch.setattr(loaded.model, "generate", generate)
    return seen


def test_each_answer_reads_all_that_was_said(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_by_the_model(loaded, monkeypatch)
    talk = Talk(loaded, GREEDY, 8, system="Be brief.")
    first, second = talk.ask("What is a cell?"), talk.ask("And a leaf?")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a cell?"},
        {"role": "assistant", "content": first.assistant},
        {"role": "user", "content": "And a leaf?"},
    ]
    assert seen[1] == chat.render(loaded.tokenizer, messages, "here", prompt=True)
    assert second.prompt_tokens == len(chat.encode(loaded.tokenizer, seen[1]))
    assert (first.forgotten, second.forgotten) == (0, 0)
    assert second.assistant == answer(loaded, messages, Decoding(8)).text.strip()
    talk.reset()
    talk.ask("What is a cell?")
    assert seen[-1] == seen[0]


def test_what_no_longer_fits_is_forgotten_from_the_oldest_on(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_by_the_model(loaded, monkeypatch)
    talk = Talk(loaded, GREEDY, 16, system="Be brief.")
    for number in range(8):
        turn = talk.ask(f"Question {number} on the cell and the leaf?")
        kept = [n for n in range(8) if f"Question {n} " in seen[-1]]
        assert kept == list(range(turn.forgotten, number + 1))
        assert turn.prompt_tokens + 16 <= CONTEXT
        assert "Be brief." in seen[-1]
    assert turn.forgotten > 0
    assert len(talk.turns) == 8


def test_a_question_too_long_by_itself_is_refused_and_not_kept(loaded: LoadedModel) -> None:
    talk = Talk(loaded, GREEDY, 16)
    with pytest.raises(UsageError, match=r"the question take \d+ tokens, .* leaves 240"):
        talk.ask("The cell " * 300)
    assert talk.turns == []
    assert talk.ask("A cell?").forgotten == 0


def test_ctrl_c_keeps_what_was_written(loaded: LoadedModel) -> None:
    said: list[str] = []

    def show(part: str) -> None:
        said.append(part)
        if len(said) == 2:
            raise KeyboardInterrupt

    talk = Talk(loaded, GREEDY, 64)
    turn = talk.ask("What is a cell?", show)
    assert turn.finish_reason == "interrupted"
    assert turn.assistant == "".join(said).strip()
    assert talk.messages()[-1] == {"role": "assistant", "content": turn.assistant}


def test_a_saved_conversation_is_data_to_tune_with(loaded: LoadedModel, tmp_path: Path) -> None:
    talk = Talk(loaded, GREEDY, 8, system="Be brief.")
    talk.ask("What is a cell?")
    talk.save(tmp_path / "talk.jsonl")
    assert json.loads((tmp_path / "talk.jsonl").read_text())["messages"] == talk.messages()
    if talk.turns[0].assistant:
        assert len(read_conversations([str(tmp_path / "talk.jsonl")]).rows) == 1


def test_the_tuned_model_is_found_and_others_are_told_what_to_do(tmp_path: Path) -> None:
    run = save_tiny_run(tmp_path / "small")
    with pytest.raises(UsageError, match=r"only pretrained.*patchtrain generate .*patchtrain sft"):
        find_tuned(run)
    tuned = {"tuning": {"from": str((run / "model").resolve())}}
    beside = save_tiny_run(tmp_path / "small-sft", **tuned)
    assert find_tuned(run) == beside
    assert find_tuned(beside) == beside
    save_tiny_run(tmp_path / "other", tuning={"from": str(tmp_path / "else" / "model")})
    assert find_tuned(run) == beside
    inside = save_tiny_run(run / "sft", **tuned)
    with pytest.raises(UsageError, match=r"more than once; name one of .*sft, .*small-sft"):
        find_tuned(run)
    assert find_tuned(inside) == inside


def test_a_model_folder_is_taken_where_it_has_a_template(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="no chat template"):
        find_tuned(folder)
    loaded = load_model(folder)
    chat.use_template(loaded.tokenizer)
    loaded.tokenizer.save_pretrained(folder)
    assert find_tuned(folder) == folder
    run = save_tiny_run(tmp_path / "run")  # trained on from a model that may have been tuned
    (run / "recipe.yaml").write_text("model: {pretrained: some/model}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no chat template"):
        find_tuned(run)
    loaded.tokenizer.save_pretrained(run / "model")
    assert find_tuned(run) == run
