"""The model at each switch is kept as it was there, through resuming, and costs no number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from patchtrain import PatchConfig, UsageError
from patchtrain.runs import RunFolder
from patchtrain.training.trainer import PatchTrainer
from tests.models import tiny_model
from tests.training.test_trainer import T, corpus, trainer

SWITCH = 4  # steps of the first stage, of ten


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    return dict(model.state_dict())


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class AtSwitch:
    """Takes the weights down as the first step of the second stage finds them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        plain = PatchTrainer.training_step

        def training_step(run: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            if run.state.global_step == SWITCH:
                self.weights = {n: t.clone() for n, t in run.model.state_dict().items()}
            return plain(run, model, *args, **kwargs)

        monkeypatch.setattr(PatchTrainer, "training_step", training_step)


def test_it_is_the_model_at_the_switch_and_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = AtSwitch(monkeypatch)
    run = trainer(tmp_path / "run")
    cached = run.model.config.use_cache
    run.train()
    assert run.model.config.use_cache == cached
    run.export(tmp_path / "run" / "model")
    folder = RunFolder(tmp_path / "run")
    assert list(folder.stage_models()) == [1]
    kept = folder.stage_model(1)
    assert equal(weights_of(kept), seen.weights)
    assert not equal(weights_of(kept), weights_of(folder.model))
    names = [sorted(path.name for path in of.iterdir()) for of in (kept, folder.model)]
    assert names[0] == names[1]
    assert json.loads((kept / "config.json").read_text())["use_cache"]
    assert "patch" not in (kept / "config.json").read_text()


def test_keeping_it_changes_nothing_and_can_be_left(tmp_path: Path) -> None:
    with_it, without = trainer(tmp_path / "a"), trainer(tmp_path / "b", keep_stage_models=False)
    # What stood there is of other weights, and would be taken for this run's.
    old = tmp_path / "b" / "stage-1"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    with_it.train()
    without.train()
    assert equal(dict(with_it.model.state_dict()), dict(without.model.state_dict()))
    assert not old.exists()
    assert RunFolder(tmp_path / "b").stage_models() == {}


def test_each_switch_keeps_one(tmp_path: Path) -> None:
    plan = {"stages": [[4, 0.4], [2, 0.3], [1, 0.3]], "preset": "paper", "context_length": T,
            "steps": 10, "tokens_per_step": 8 * T}  # fmt: skip
    args = PatchConfig(str(tmp_path), plan=plan, use_cpu=True, disable_tqdm=True)
    PatchTrainer(tiny_model(), args, corpus()).train()
    folders = RunFolder(tmp_path).stage_models()
    assert list(folders) == [1, 2]
    assert not equal(*(weights_of(folder) for folder in folders.values()))


@pytest.mark.parametrize("step", [2, SWITCH, 6])
def test_a_resumed_run_has_it(tmp_path: Path, step: int) -> None:
    """Made again if the run goes on from before or at the switch, else left as it is."""
    settings: dict[str, Any] = {"save_steps": 2, "save_total_limit": 9}
    trainer(tmp_path, **settings).train()
    kept = RunFolder(tmp_path).stage_model(1)
    expected, file = weights_of(kept), kept / "model.safetensors"
    written = file.stat().st_ino
    trainer(tmp_path, **settings).train(str(tmp_path / f"checkpoint-{step}"))
    assert equal(weights_of(kept), expected)
    assert (file.stat().st_ino == written) == (step > SWITCH)


def test_writing_it_is_not_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path)
    assert run.record is not None
    paused: list[float] = []
    monkeypatch.setattr(run.record, "pause", paused.append)
    monkeypatch.setattr(run, "export", lambda path: path)
    run.args.eval_strategy = "no"
    run.train()
    assert len(paused) == 1


def test_folders_that_only_look_like_it(tmp_path: Path) -> None:
    for name in ("stage-1", "stage-02", "stage-3", "stage-x", "stage-10"):
        (tmp_path / name).mkdir()
        if name != "stage-1":
            (tmp_path / name / "config.json").write_text("{}")
    assert list(RunFolder(tmp_path).stage_models()) == [3, 10]


def test_waiting_for_data_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    settings: dict[str, Any] = {"save_steps": 5, "save_total_limit": 9, "logging_steps": 1}
    run = trainer(tmp_path, **settings)
    plain = type(run.train_dataset).__getitem__

    def slow(self: Any, step: int) -> Any:
        time.sleep(0.02)
        return plain(self, step)

    monkeypatch.setattr(type(run.train_dataset), "__getitem__", slow)
    run.train()
    rows = RunFolder(tmp_path).metrics()
    waited = [row["data_seconds"] for row in rows]
    assert waited == sorted(waited)
    assert all(row["data_seconds"] < row["seconds"] for row in rows)
    # The switch comes when the first batch after it is there.
    last = {row["step"]: row["data_seconds"] for row in rows if row["event"] == "train"}
    assert 0.2 <= last[10] < 1
    trainer(tmp_path, **settings).train(str(tmp_path / "checkpoint-5"))
    again = {row["step"]: row["data_seconds"] for row in RunFolder(tmp_path).metrics("train")}
    assert again[5] == last[5]
    assert again[10] >= again[5] + 0.1


@pytest.mark.parametrize("keep_stage_models", [True, False])
def test_sampling_settings_that_transformers_reads_and_does_not_write(
    tmp_path: Path, keep_stage_models: bool
) -> None:
    model = tiny_model()
    model.generation_config.update(temperature=0.6, top_p=0.9)
    run = trainer(tmp_path / "run", model, keep_stage_models=keep_stage_models)
    run.train()
    run.export(tmp_path / "model")
    assert run.model.generation_config.do_sample is not True  # the live model is as it came
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config
    assert (kept.do_sample, kept.temperature, kept.top_p) == (True, 0.6, 0.9)


def test_generation_settings_that_cannot_be_saved_are_refused_before_training(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    model.generation_config.num_return_sequences = 3
    model.generation_config.num_beams = 2
    run = trainer(tmp_path / "run", model)
    with pytest.raises(UsageError, match="generation_config cannot be saved, so mend it first"):
        run.train()
    assert run.state.global_step == 0
