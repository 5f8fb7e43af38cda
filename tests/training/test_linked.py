"""On linked files a run is the run on a store of the same documents, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patchtrain import PatchConfig, PatchTrainer
from patchtrain.data.linking import link
from patchtrain.data.store import TokenStore
from patchtrain.errors import UsageError
from tests.data.foreign import FILES, SOURCES, own_store, sources
from tests.models import tiny_model


def trained(store: Any, folder: Path, documents: str = "mixed") -> tuple[list[float], Any, Any]:
    """Losses by step, weights, and validation metrics of a short run."""
    plan = {
        "preset": "superposition",
        "context_length": 8,
        "tokens_per_step": 32,
        "patch_size": 2,
        "step_fraction": 0.5,
        "steps": 8,
        "max_epochs": 2,
        "documents": documents,
    }
    args = PatchConfig(
        str(folder), plan=plan, use_cpu=True, disable_tqdm=True, learning_rate=1e-2,
        per_device_train_batch_size=4, logging_steps=1, save_strategy="no", report_to="none",
        eval_steps=4,
    )  # fmt: skip
    trainer = PatchTrainer(tiny_model(vocab_size=257), args, store)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.model.state_dict(), trainer.evaluate()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return own_store(tmp_path_factory.mktemp("own") / "store")


@pytest.fixture(scope="module")
def reference(own: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {
        documents: trained(own, tmp_path_factory.mktemp("run"), documents)
        for documents in ("mixed", "separate")
    }


@pytest.mark.parametrize("name", SOURCES)
def test_every_format_trains_to_the_same_loss(
    name: str, own: TokenStore, reference: Any, tmp_path: Path
) -> None:
    first, second = sources(name)
    store = link(first, tmp_path / "store", tokenizer=own.path, validation=second)
    losses, weights, metrics = trained(store, tmp_path / "run")
    wanted, expected, measured = reference["mixed"]
    assert len(losses) == 8
    assert losses == wanted
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    names = ("eval_loss", "eval_bits_per_byte")
    if name.startswith("llmc"):  # one target less: nothing closes the last document
        assert metrics["eval_loss"] == pytest.approx(measured["eval_loss"], rel=0.05)
    else:
        assert [metrics[key] for key in names] == [measured[key] for key in names]


@pytest.mark.parametrize("name", ["megatron", "litdata"])
def test_documents_are_kept_apart_as_in_a_store(
    name: str, own: TokenStore, reference: Any, tmp_path: Path
) -> None:
    first, second = sources(name)
    store = link(first, tmp_path / "store", tokenizer=own.path, validation=second)
    losses, weights, metrics = trained(store, tmp_path / "run", "separate")
    wanted, expected, measured = reference["separate"]
    assert losses == wanted
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert metrics["eval_loss"] == measured["eval_loss"]


def test_without_a_tokenizer_there_is_a_loss_and_no_bits_per_byte(
    reference: Any, tmp_path: Path
) -> None:
    store = link([FILES / "nanogpt"], tmp_path / "store", vocab_size=257)
    losses, _, metrics = trained(store, tmp_path / "run")
    assert losses == reference["mixed"][0]
    assert metrics["eval_loss"] == reference["mixed"][2]["eval_loss"]
    assert "eval_bits_per_byte" not in metrics
    with pytest.raises(UsageError, match="where the end-of-text token is known"):
        trained(store, tmp_path / "other", "separate")
