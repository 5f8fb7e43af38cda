"""Muon beside AdamW: the steps of both, one state that is switched and resumed, and refusals."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchtrain import PatchConfig, UsageError
from patchtrain.runs import RunFolder
from patchtrain.training.muon import MuonAndAdamW, hidden_matrices
from tests.families import tiny_family
from tests.models import tiny_model
from tests.training.test_resuming import equal, weights
from tests.training.test_trainer import trainer


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_only_matrices_between_hidden_states_are_muons() -> None:
    for tied in (True, False):
        model = tiny_model("phi", tie_word_embeddings=tied)
        ours = {id(weight) for weight in hidden_matrices(model)}
        names = {name for name, weight in model.named_parameters() if id(weight) in ours}
        assert all(weight.ndim == 2 for weight in hidden_matrices(model))
        assert len(names) == 2 * 6  # q, k, v, o and two of the feed-forward, without biases
        assert not any("embed" in name or "lm_head" in name for name in names)


def names(model: nn.Module) -> set[str]:
    """The kinds of weights that are Muon's, the numbers of layers left out."""
    ours = {id(weight) for weight in hidden_matrices(model)}
    found = [name for name, weight in model.named_parameters() if id(weight) in ours]
    return {re.sub(r".*\.\d+\.", "", name) for name in found}


ATTENTION = {f"self_attn.{part}_proj.weight" for part in "qkvo"}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ATTENTION | {f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}),
        # A table of positions is looked up, as the input embedding is.
        ("gpt2", {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight",
                  "mlp.c_proj.weight"}),
        ("opt", (ATTENTION - {"self_attn.o_proj.weight"})
         | {"self_attn.out_proj.weight", "fc1.weight", "fc2.weight"}),
        # Routers are no hidden matrices, whether they are linear layers or not.
        ("mixtral", ATTENTION),
        ("phimoe", ATTENTION),
        ("longcat_flash", {"q_a_proj.weight", "q_b_proj.weight", "kv_a_proj_with_mqa.weight",
                           "kv_b_proj.weight", "o_proj.weight", "gate_proj.weight",
                           "up_proj.weight", "down_proj.weight"}),
        # A gate of one row is a vector.
        ("qwen2_moe", ATTENTION | {f"mlp.shared_expert.{part}_proj.weight"
                                   for part in ("gate", "up", "down")}),
        # Decays of a state, a number each.
        ("mamba", {f"mixer.{part}_proj.weight" for part in ("in", "x", "dt", "out")}),
    ],
)  # fmt: skip
def test_only_the_matrices_of_products_are_muons(family: str, expected: set[str]) -> None:
    assert names(tiny_family(family)) == expected


def test_a_model_of_linear_layers_has_all_its_matrices_in_their_order() -> None:
    model = tiny_model()
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    expected = [w for name, w in model.named_parameters() if w.ndim == 2 and name not in ends]
    found = hidden_matrices(model)
    assert len(found) == len(expected) == 2 * 7
    assert all(one is other for one, other in zip(found, expected, strict=True))


def test_what_muon_cannot_take_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = tiny_model("mixtral", num_local_experts=4)
    run = trainer(tmp_path / "a", mixture, muon_rate=1.0)
    run.train()
    share = sum(w.numel() for w in mixture.parameters() if w.ndim == 3) / run.size.parameters
    said = [line for line in capsys.readouterr().err.splitlines() if "muon" in line]
    assert said == [
        f"patchtrain: warning: muon_rate leaves 4 stacks of matrices, {share:.0%} of the "
        f"parameters, to AdamW (model.layers.0.mlp.experts.gate_up_proj and others): Muon takes "
        f"single matrices"
    ]
    ours = set(hidden_matrices(mixture))
    for weight, state in run.optimizer.optimizer.state.items():
        assert ("momentum_buffer" in state) == (weight in ours)
    trainer(tmp_path / "b", tiny_model("gpt2"), muon_rate=1.0).train()
    assert "muon" not in capsys.readouterr().err


def test_each_takes_its_own_steps_also_after_its_state_was_loaded() -> None:
    """Against the two optimizers of torch, on a model each."""
    models = [tiny_model(seed=3) for _ in range(2)]

    def both(model: nn.Module) -> tuple[Any, Any]:
        ours = hidden_matrices(model)
        mine = {id(weight) for weight in ours}
        others = [weight for weight in model.parameters() if id(weight) not in mine]
        return torch.optim.AdamW(others, lr=0.01), torch.optim.Muon(ours, lr=0.02)

    together, (adamw, muon) = MuonAndAdamW(*both(models[0])), both(models[1])
    for step in range(4):
        if step == 2:
            saved = together.state_dict()
            together = MuonAndAdamW(*both(models[0]))
            together.load_state_dict(saved)
        for group in together.param_groups:
            group["lr"] *= 0.5
        for each in (adamw, muon):
            each.param_groups[0]["lr"] *= 0.5
        for model in models:
            gradients(model, step)
        for each in (together, adamw, muon):
            each.step()
    assert equal(models[0].state_dict(), models[1].state_dict())
    assert len(together.state) == len(list(models[0].parameters()))
    together.state.clear()
    assert not adamw.state.keys() & together.state.keys()


def test_a_run_has_both_at_their_rates(tmp_path: Path) -> None:
    run = trainer(tmp_path, muon_rate=0.5, logging_steps=1)
    run.train()
    optimizer = run.optimizer.optimizer
    assert isinstance(optimizer, MuonAndAdamW)
    peaks = [(group["muon"], group["initial_lr"], group["weight_decay"])
             for group in optimizer.param_groups]  # fmt: skip
    assert peaks == [(False, 0.01, 0.1), (False, 0.01, 0.0), (True, 0.005, 0.1)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(run.model.parameters())
    )
    ours = set(hidden_matrices(run.model))
    for weight, state in optimizer.state.items():
        assert ("momentum_buffer" in state) == (weight in ours)
        assert ("exp_avg" in state) == (weight not in ours)
    rows = RunFolder.open(tmp_path).metrics("train")
    assert rows[5]["learning_rate"] == pytest.approx(0.01 * run.plan.rate_at(5))
    assert rows[-1]["loss"] < rows[4]["loss"]


@pytest.mark.parametrize("switch", ["carry", "reset"])
@pytest.mark.parametrize("step", [3, 4, 5])  # before the switch, at it and after it
def test_a_resumed_run_is_the_same(tmp_path: Path, step: int, switch: str) -> None:
    values = {"plan": {"optimizer_at_switch": switch}, "muon_rate": 1.0, "save_steps": step}
    whole = trainer(tmp_path, **values, save_total_limit=9)
    whole.train()
    resumed = trainer(tmp_path, **values, save_total_limit=9)
    resumed.train(str(tmp_path / f"checkpoint-{step}"))
    assert equal(weights(whole), weights(resumed))
    with pytest.raises(UsageError, match=r"optimizer\.muon_rate is None and was 1\.0"):
        trainer(tmp_path, **{**values, "muon_rate": 0.0}, save_total_limit=9).train(True)


def test_what_does_not_go_together_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"muon_rate needs AdamW .*, not adagrad"):
        trainer(tmp_path, muon_rate=1.0, optim="adagrad").train()
    second = trainer(tmp_path / "b", muon_rate=1.0, plan={"optimizer_at_switch": "second"})
    with pytest.raises(UsageError, match="second moments, and MuonAndAdamW has only momentum_buf"):
        second.train()
    for rate in (-1, True, "fast"):
        with pytest.raises(UsageError, match="muon_rate must be from 0 to 1,024, not"):
            PatchConfig(str(tmp_path), muon_rate=rate)
    monkeypatch.setattr(PatchConfig, "world_size", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="muon_rate cannot be used with fsdp"):
        PatchConfig(str(tmp_path), muon_rate=1.0)
