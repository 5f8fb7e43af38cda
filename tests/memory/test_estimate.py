"""The memory told before training, against torch's own tracker, the formula's parts and sense."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._tools.mem_tracker import MemTracker

from patchtrain import PatchConfig, patch_level
from patchtrain.errors import UsageError
from patchtrain.memory import Memory, Training, estimate, fits, memory_of, what_would_fit
from patchtrain.memory.dataless import period_of, with_layers
from patchtrain.memory.estimate import RESERVE
from patchtrain.memory.live import Work, run_pass
from patchtrain.memory.sharded import shard_shape
from patchtrain.modeling import output_embeddings
from tests.models import tiny_model

BASE = Training(patch_size=4, context_length=64, sequences=4, device="cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16, "vocab_size": 300}


def meta(family: str = "llama", **more: Any) -> Any:
    with torch.device("meta"):
        return tiny_model(family, **{**SIZES, **more})


def tracked(model: Any, training: Training) -> tuple[int, int]:
    """Bytes of activations as the forward reaches the head, and of all at the peak of a step."""
    model.config.use_cache = False
    model.train()
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    ids = torch.randint(50, (training.sequences, training.patch_size * training.context_length))
    tracker = MemTracker()
    kept: list[int] = []

    def at_head(module: Any, args: Any) -> None:
        (snapshot,) = tracker.get_tracker_snapshot().values()
        sizes = {getattr(kind, "value", kind): size for kind, size in snapshot.items()}
        kept.append(sizes["Activation"])

    with patch_level(model, training.patch_size, backend=training.backend):
        tracker.track_external(model, optimizer, ids)
        hook = output_embeddings(model).register_forward_pre_hook(at_head)
        hook_order = output_embeddings(model)._forward_pre_hooks
        hook_order.move_to_end(hook.id, last=False)
        with tracker:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training.bf16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            del loss
            optimizer.step()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return kept[0], peak["Total"]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"patch_size": 1}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"bf16": True}),
        ("gemma3_text", {"patch_size": 2}),
        ("gpt2", {"patch_size": 1}),
    ],
)
def test_it_is_what_torchs_tracker_counts_of_real_training(
    family: str, changes: dict[str, Any]
) -> None:
    training = replace(BASE, **changes)
    names = {"n_embd": 64, "n_layer": 5, "n_head": 4} if family == "gpt2" else SIZES
    layers = {} if family == "gpt2" else {"num_hidden_layers": 5}
    model = tiny_model(family, **{**SIZES, **names, **layers})
    told = estimate(model, training)  # of 2 and 3 layers
    kept, peak = tracked(model, training)
    copies = kept - told.activations  # autocast's, which the tracker does not tell apart
    small = 0.01 * kept  # positions, counts
    assert abs(copies) < small if not training.bf16 else 0 < copies <= told.transient
    assert told.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_line_through_two_models_meets_a_deeper_one(checkpointing: bool) -> None:
    work = Work(patch_size=2, context_length=32, rows=3, checkpointing=checkpointing)
    config = meta().config

    def run(layers: int) -> Any:
        return run_pass(lambda: type(meta())(with_layers(config, layers)), work)

    line, whole = run(2).towards(run(3), 5.0), run(7)
    assert line.parameters == whole.parameters
    for phase in ("forward", "loss", "loss backward", "last layer", "first layer", "embedding"):
        assert line.at(phase) == pytest.approx(whole.at(phase), rel=1e-3), phase


def test_layers_of_several_kinds_are_counted_by_the_period() -> None:
    kinds = ["sliding_attention", "full_attention"] * 4
    config = meta("gemma3_text", num_hidden_layers=8, layer_types=kinds).config
    assert period_of(config) == 2
    assert with_layers(config, 4).layer_types == kinds[:4]
    assert config.num_hidden_layers == 8  # its own is left as it was
    assert period_of(meta(num_hidden_layers=8).config) == 1


def test_layers_that_are_not_alike_are_all_run() -> None:
    model = meta(num_hidden_layers=5)
    wider = torch.nn.Linear(64, 1000, device="meta")
    model.model.layers[4].extra = wider  # its config does not say so
    told = estimate(model, BASE)
    whole = run_pass(
        lambda: type(model)(with_layers(model.config, 5)),
        Work(patch_size=4, context_length=64, rows=4),
    )
    assert told.activations == whole.kept["activations"]
    assert told.gradients == sum(p.numel() for p in model.parameters()) * 4


def test_the_parts() -> None:
    model = meta(num_hidden_layers=6)
    weights = sum(p.numel() for p in model.parameters()) * 4
    told = estimate(model, BASE)
    assert told.gradients == weights
    assert told.optimizer == pytest.approx(2 * weights, rel=1e-3)  # AdamW's two, and its steps
    assert 0 <= told.parameters - weights < 0.1 * weights  # inputs and buffers
    assert told.peak == max(told.phases.values()) == told.phases[told.when]
    assert json.loads(json.dumps(told.to_dict()))["peak"] == told.peak
    again = estimate(model, replace(BASE, gradient_checkpointing=True))
    assert again.activations < told.activations / 4
    plain = estimate(model, replace(BASE, backend="plain"))
    assert plain.loss > told.loss
    assert estimate(model, replace(BASE, patch_size=1)).activations == told.activations


def test_a_mean_of_the_weights_is_held_in_fp32() -> None:
    model = meta(num_hidden_layers=6).bfloat16()
    weights = sum(p.numel() for p in model.parameters())
    for processes in (1, 4):
        training = replace(BASE, processes=processes, fsdp=processes > 1)
        without, told = (estimate(model, replace(training, averaged=on)) for on in (False, True))
        more = told.parameters - without.parameters
        assert more == pytest.approx(4 * weights / processes, rel=0.02)
        assert told.peak - without.peak == more


def test_processes() -> None:
    model = meta(num_hidden_layers=6)
    one = estimate(model, BASE)
    buckets = estimate(model, replace(BASE, processes=4))
    assert buckets.peak == one.peak + one.gradients  # DDP's copy of the gradients
    sharded = estimate(model, replace(BASE, processes=4, fsdp=True))
    assert sharded.gradients == pytest.approx(one.gradients / 4, rel=0.02)
    assert sharded.optimizer == pytest.approx(one.optimizer / 4, rel=0.02)
    hybrid = estimate(model, replace(BASE, processes=8, shards=4, fsdp=True))
    assert hybrid.peak == sharded.peak
    kept = estimate(model, replace(BASE, processes=4, fsdp=True, reshard_after_forward=False))
    assert kept.peak > sharded.peak
    waiting = estimate(model, replace(BASE, processes=4, fsdp=True, step_sequences=32))
    assert waiting.training.passes == 2
    assert waiting.gradients == sharded.gradients  # reduced after every pass
    more = waiting.phases["forward"] - sharded.phases["forward"]
    assert more == pytest.approx(sharded.gradients, rel=0.02)
    assert estimate(model, replace(BASE, fsdp=True)).peak == one.peak  # nothing to share out


def test_several_passes_have_the_gradients_all_along() -> None:
    model = meta(num_hidden_layers=6)
    one, two = (estimate(model, replace(BASE, step_sequences=n)) for n in (4, 8))
    assert two.phases["forward"] == one.phases["forward"] + one.gradients
    three = estimate(model, replace(BASE, step_sequences=12))
    assert three.phases == two.phases


def test_optimizers() -> None:
    model = meta(num_hidden_layers=4)
    weights = sum(p.numel() for p in model.parameters()) * 4
    for name, share in (("adamw_torch", 2.0), ("sgd", 0.0), ("rmsprop", 1.0)):
        told = estimate(model, replace(BASE, optimizer=name))
        assert told.optimizer == pytest.approx(share * weights, rel=1e-3, abs=1000), name
    fused, copying = (
        estimate(model, replace(BASE, optimizer=name, device="cuda")).phases["optimizer step"]
        for name in ("adamw_torch_fused", "adamw_torch")
    )
    assert copying - fused == pytest.approx(weights, rel=0.1)  # torch's default has copies of all
    with pytest.raises(UsageError, match="optimizer 'adamw_torhc' cannot be told"):
        estimate(model, replace(BASE, optimizer="adamw_torhc"))


def test_a_gpu_takes_larger_chunks_and_no_other_activations() -> None:
    model = meta(num_hidden_layers=4)
    cpu, gpu = (estimate(model, replace(BASE, device=device)) for device in ("cpu", "cuda"))
    assert gpu.phases["loss"] > cpu.phases["loss"]
    assert 0.9 * cpu.activations < gpu.activations <= cpu.activations


def test_a_model_that_has_no_layers_in_a_list_is_refused_in_a_line() -> None:
    model = meta()
    model.config.num_hidden_layers = 77
    with pytest.raises(UsageError, match=r"^the memory of LlamaForCausalLM cannot be told: it has"):
        estimate(model, BASE)


@given(shape=st.lists(st.integers(1, 60), min_size=1, max_size=3), parts=st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_the_first_part_of_a_weight_is_the_first_chunk(shape: list[int], parts: int) -> None:
    first = torch.empty(shape).chunk(parts)[0]
    assert shard_shape(tuple(shape), parts) == tuple(first.shape)


# ---- what would make it fit


def told_both(model: Any, **changes: Any) -> list[Memory]:
    training = replace(BASE, **changes)
    return [estimate(model, replace(training, patch_size=K)) for K in (4, 1)]


def test_fits_leaves_the_reserve() -> None:
    (told,) = told_both(meta())[:1]
    enough = round(told.peak / (1 - RESERVE)) + 1
    assert fits(told, enough)
    assert not fits(told, told.peak)
    assert fits([told, told], enough)
    assert what_would_fit(meta(), told, enough) == []


def test_what_would_fit_does() -> None:
    model = meta(num_hidden_layers=8)
    stages = told_both(model, sequences=8)
    smaller = told_both(model, sequences=4)
    size = round(max(stage.peak for stage in smaller) / (1 - RESERVE)) + 1
    (line,) = what_would_fit(model, stages, size)
    assert line.startswith("training.per_device_train_batch_size of 4: ")

    (one,) = what_would_fit(model, told_both(model, sequences=1)[:1], 1)[:1]
    assert one.startswith("training.activation_checkpointing=true: ")  # no smaller pass is left


def test_what_would_fit_goes_over_more_processes_and_says_where_it_ends() -> None:
    model = meta(num_hidden_layers=8, vocab_size=4000)
    stages = told_both(model, sequences=1)[:1]
    size = round(0.6 * min(stage.peak for stage in stages))
    lines = what_would_fit(model, stages, size)
    assert lines
    assert any("processes" in line for line in lines)
    lines = what_would_fit(model, stages, 1000)
    assert lines[-1].startswith("and still not enough")


# ---- a plan


def test_every_stage_of_a_plan(tmp_path: Path) -> None:
    plan = {"patch_size": 4, "patch_fraction": 0.5, "preset": "paper", "context_length": 64,
            "tokens_per_step": 2048, "steps": 40, "average_at_switch": 0.1}  # fmt: skip
    args = PatchConfig(str(tmp_path), plan=plan, per_device_train_batch_size=4,
                       activation_checkpointing=True, bf16=True, report_to="none")  # fmt: skip
    resolved = args.plan_spec(64).resolve(device_sequences=4, processes=2)
    model = meta(num_hidden_layers=5)
    stages = memory_of(model, resolved, args, device="cuda", fsdp=True)
    assert [stage.training.patch_size for stage in stages] == [4, 1]
    for stage, expected in zip(stages, resolved.stages, strict=True):
        training = stage.training
        assert training.averaged == (training.patch_size == 4)
        assert training.passes == resolved.passes(expected)
        assert (training.fsdp, training.bf16, training.gradient_checkpointing) == (True,) * 3
        assert training.optimizer == "adamw_torch_fused"
        assert stage == estimate(model, training)
    assert memory_of(model, resolved, args)[0].training.fsdp is False
