"""Separate documents: packed rows against each document on its own, in passes and processes."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from patchtrain import PatchConfig, PatchTrainer, UsageError, patch_level, patch_loss_reference
from patchtrain.data.batches import read_rows
from patchtrain.data.documents import aligned_documents
from patchtrain.evaluation.perplexity import documents_loss, packed_loss
from patchtrain.patches import patch_targets
from patchtrain.runs import RunFolder
from tests.models import VOCAB, tiny_model
from tests.training.several import call

T, EOS = 8, 0


def documents(count: int = 300, seed: int = 0, longest: int = 30) -> list[list[int]]:
    """Documents in which a token is likely the previous plus one, ending in token 0."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(1, longest))
        steps = np.where(rng.random(length) < 0.8, 1, rng.integers(1, VOCAB, length))
        made.append([*(np.cumsum(steps) % (VOCAB - 1) + 1).tolist(), EOS])
    return made


def split(made: list[list[int]]) -> Any:
    """The documents as a split of a token store."""
    tokens = np.array([token for document in made for token in document], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, made)])
    return SimpleNamespace(tokens=tokens, offsets=offsets, utf8_bytes=1, end_token=EOS)


def trainer(folder: Path, **values: Any) -> PatchTrainer:
    plan = {
        "preset": "superposition",
        "context_length": T,
        "tokens_per_step": 8 * T,
        "patch_size": 2,
        "step_fraction": 0.4,
        "steps": 10,
        "slot_weights": "power",
        "documents": "separate",
        **values.pop("plan", {}),
    }
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True,
                "eval_steps": 3, "save_steps": 5}  # fmt: skip
    args = PatchConfig(str(folder), plan=plan, use_cpu=True, **{**settings, **values})
    validation = split(documents(40, seed=1))
    return PatchTrainer(tiny_model(), args, split(documents()), eval_dataset=validation)


def alone(model: Any, document: list[int], patch_size: int) -> tuple[Tensor, int]:
    """Summed patch loss of one document by itself, by the formula, and its targets."""
    ids = torch.tensor([[EOS, *document]])
    filled = -(-ids.shape[1] // patch_size) * patch_size
    ids = torch.nn.functional.pad(ids, (0, filled - ids.shape[1]), value=EOS)
    labels = ids.clone()
    labels[:, len(document) + 1 :] = -100
    if filled == patch_size:
        return torch.zeros((), dtype=torch.float64), 0  # one patch predicts nothing
    pooled = model.get_input_embeddings()(ids).view(1, -1, patch_size, 32).mean(2)
    targets = patch_targets(labels, patch_size)
    count = int((targets != -100).sum())
    logits = model(inputs_embeds=pooled).logits[:, :-1]
    return patch_loss_reference(logits, targets) * count, count


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_packed_documents_have_the_loss_and_gradients_of_each_alone(
    family: str, patch_size: int
) -> None:
    model = tiny_model(family)
    made = documents(12)
    stream = aligned_documents(split(made), patch_size)
    rows = read_rows(stream, np.array([0]), len(stream), patch_size)
    inputs = {name: torch.from_numpy(value) for name, value in rows.items()}
    with patch_level(model, patch_size):
        packed = model(**inputs).loss
    got = torch.autograd.grad(packed, model.get_input_embeddings().weight)[0]
    parts = [alone(model, document, patch_size) for document in made]
    expected = sum(loss for loss, _ in parts) / sum(count for _, count in parts)
    wanted = torch.autograd.grad(expected, model.get_input_embeddings().weight)[0]
    torch.testing.assert_close(packed.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_at_token_level_packed_documents_are_those_scored_one_by_one() -> None:
    model, made = tiny_model(), documents(12)
    stream = aligned_documents(split(made), 4)  # with padding that a patch-level stage wants
    packed = packed_loss(model, stream.read(np.array([0]), len(stream), 1))
    nats, targets = documents_loss(model, made, EOS, context_length=64)
    assert packed[1] == targets == sum(map(len, made))
    assert packed[0] == pytest.approx(nats, rel=1e-5)


def test_mixed_documents_are_the_plain_stream() -> None:
    made = split(documents(12))
    rows = read_rows(made.tokens, np.array([0, 16]), 16, 4)
    assert rows.keys() == {"input_ids"}
    assert np.array_equal(rows["input_ids"].ravel(), made.tokens[:32])


@pytest.mark.parametrize("separate", [True, False])
def test_another_document_is_seen_only_if_mixed(separate: bool) -> None:
    model = tiny_model().eval()
    made = documents(2, longest=20)
    other = [[7] * (len(made[0]) - 1) + [EOS], made[1]]
    last = []
    for pair in (made, other):
        stream = aligned_documents(split(pair), 4)
        inputs = stream.read(np.array([0]), len(stream), 4)
        if not separate:
            inputs = {"input_ids": inputs["input_ids"]}
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad(), patch_level(model, 4):
            tensors.pop("labels", None)
            last.append(model(**tensors).logits[0, -1])
    assert torch.allclose(last[0], last[1], atol=1e-6) is separate


def test_passes_of_unlike_targets_are_the_step_in_one_pass(tmp_path: Path) -> None:
    runs = [
        trainer(tmp_path / str(rows), per_device_train_batch_size=rows, logging_steps=1)
        for rows in (8, 2)
    ]
    for run in runs:
        run.train()
    losses = [
        [row["loss"] for row in RunFolder.open(tmp_path / str(rows)).metrics("train")]
        for rows in (8, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for got, want in zip(runs[1].model.parameters(), runs[0].model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("rows", "shape"), [("positions", (8, 2 * T)), ("tokens", (16, T))], ids=["positions", "tokens"]
)
def test_the_step_loss_is_the_mean_over_all_its_targets(
    tmp_path: Path, rows: str, shape: tuple[int, int]
) -> None:
    run = trainer(tmp_path, per_device_train_batch_size=2, logging_steps=1, plan={"rows": rows})
    model = tiny_model()
    inputs = {name: torch.from_numpy(value) for name, value in run.batches.inputs(0).items()}
    assert inputs["input_ids"].shape == shape
    with patch_level(model, 2, "power"):
        expected = model(**inputs).loss.item()
    run.train()
    assert RunFolder.open(tmp_path).metrics("train")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def _one_of_two(folder: Path) -> None:
    run = trainer(folder, per_device_train_batch_size=2, logging_steps=1)
    run.train()
    run.accelerator.end_training()


def test_two_processes_train_the_same_as_one(tmp_path: Path) -> None:
    call(2, _one_of_two, tmp_path / "two")
    trainer(tmp_path / "one", logging_steps=1).train()
    runs = [RunFolder.open(tmp_path / name) for name in ("one", "two")]
    for event, key in (("train", "loss"), ("train", "grad_norm"), ("eval", "loss")):
        one, two = ([row[key] for row in run.metrics(event)] for run in runs)
        assert one == pytest.approx(two, rel=1e-3)


def test_evaluation_is_document_by_document(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_tokens=10**6)
    metrics = run.evaluate()
    stream = aligned_documents(split(documents(40, seed=1)), 2)
    rows = stream.read(np.arange(len(stream) // T) * T, T, 1)
    nats, targets = 0.0, 0
    model = tiny_model()
    for ids, labels, positions in zip(*rows.values(), strict=True):
        begins = [*np.flatnonzero(positions == 0), T]
        for begin, end in pairwise(begins):
            kept = begin + int((labels[begin:end] != -100).sum()) + 1
            if kept - begin < 2:
                continue
            loss, count = documents_loss(model, [ids[begin + 1 : kept]], int(ids[begin]), T)
            nats, targets = nats + loss, targets + count
    assert metrics["eval_loss"] == pytest.approx(nats / targets, rel=1e-5)


def test_the_run_says_what_keeping_documents_separate_adds(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    info = RunFolder.open(tmp_path).info()
    tokens = len(split(documents()).tokens)
    assert info["documents"]["read"] == info["plan"]["documents"] == "separate"
    assert info["documents"]["stream_tokens"] - info["documents"]["added_tokens"] == tokens
    assert info["documents"]["added_tokens"] >= 300  # at least a start token each


def test_rows_of_a_dataset_are_documents(tmp_path: Path) -> None:
    plan = {"patch_size": 2, "documents": "separate", "preset": "paper", "context_length": T,
            "steps": 2, "tokens_per_step": 4 * T, "patch_fraction": 0.5}  # fmt: skip
    args = PatchConfig(str(tmp_path), plan=plan, use_cpu=True, disable_tqdm=True)
    run = PatchTrainer(tiny_model(), args, Dataset.from_dict({"input_ids": documents()}))
    expected = aligned_documents(split(documents()), 2)
    assert len(run.batches.tokens) == len(expected)
    run.train()


def test_tokens_without_documents_and_models_that_cannot_are_refused(tmp_path: Path) -> None:
    plan = {
        "documents": "separate",
        "preset": "paper",
        "context_length": T,
        "tokens_per_step": 4 * T,
        "steps": 2,
    }
    args = PatchConfig(str(tmp_path), plan=plan, use_cpu=True, disable_tqdm=True)
    with pytest.raises(UsageError, match=r"plan\.documents to mixed"):
        PatchTrainer(tiny_model(), args, np.zeros(1000, dtype=np.uint16))
    with pytest.raises(UsageError, match="Bloom"):
        PatchTrainer(tiny_model("bloom"), args, split(documents()))
    bad = PatchConfig(str(tmp_path), plan={**plan, "documents": "apart"}, use_cpu=True)
    with pytest.raises(UsageError, match="documents 'apart' is not one of mixed, separate"):
        PatchTrainer(tiny_model(), bad, split(documents()))
