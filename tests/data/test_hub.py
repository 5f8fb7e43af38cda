"""What is asked of the hub, and which names are its own."""

import pytest

from patchtrain.data import hub


def test_offline_is_respected(monkeypatch):
    asked = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.create_connection", lambda *_: asked.append(1))
    assert not hub.reachable()
    assert not hub.unreachable()
    assert not asked


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("gpt2", False),
        ("Qwen/Qwen3-0.6B", False),
        ("runs/small/model", True),
        ("./gpt2", True),
        ("/models/gpt2", True),
        ("~/gpt2", True),
        ("gpt2/tokenizer.json", True),
    ],
)
def test_a_path_is_told_from_a_name_on_the_hub(name, is_path):
    assert hub.looks_like_path(name) is is_path
