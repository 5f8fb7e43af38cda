"""A step on fake ranks: it runs, its shards are right, and the estimate is what it comes to."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from patchtrain.errors import UsageError
from patchtrain.memory import Training, estimate
from patchtrain.memory.tracing import Trace, trace_step


def config(**more: Any) -> LlamaConfig:
    sizes = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 176,
             "num_hidden_layers": 5, "num_attention_heads": 4,
             "num_key_value_heads": 2}  # fmt: skip
    return LlamaConfig(**{**sizes, **more})


def told(settings: LlamaConfig, trace: Trace, **more: Any) -> int:
    with torch.device("meta"):
        model = LlamaForCausalLM(settings)
    training = Training(
        patch_size=trace.patch_size, context_length=trace.context_length,
        sequences=trace.sequences, processes=trace.ranks, shards=trace.shards, fsdp=True,
        device="cpu", **more,
    )  # fmt: skip
    return estimate(model, training).peak


def test_a_patch_level_step_on_eight_ranks() -> None:
    settings = config()
    trace = trace_step(
        settings, ranks=8, patch_size=4, context_length=64, sequences=2, device="cpu"
    )
    with torch.device("meta"):
        weights = list(LlamaForCausalLM(settings).parameters())
    assert trace.layers == 5
    assert trace.parameters == sum(weight.numel() for weight in weights)
    assert trace.sharded_parameters * 8 == trace.parameters  # 8 divides every first dimension
    assert trace.wrong_shards == []
    assert trace.gradients == trace.sharded_parameters
    assert trace.optimizer_bytes == pytest.approx(8 * trace.sharded_parameters, rel=0.01)
    assert trace.peak_bytes > trace.forward_bytes > 12 * trace.sharded_parameters
    assert told(settings, trace, bf16=True) == pytest.approx(trace.peak_bytes, rel=0.1)


def test_a_hybrid_token_level_step_with_parts_of_unequal_size() -> None:
    settings = config(hidden_size=60, num_attention_heads=6, num_key_value_heads=6)
    trace = trace_step(
        settings, ranks=1024, shards=16, patch_size=1, context_length=64, sequences=4,
        gradient_checkpointing=True, bf16=False, device="cpu",
    )  # fmt: skip
    assert (trace.ranks, trace.shards) == (1024, 16)
    assert trace.wrong_shards == []
    assert trace.sharded_parameters == trace.expected_part > trace.parameters / 16
    expected = told(settings, trace, gradient_checkpointing=True)
    assert expected == pytest.approx(trace.peak_bytes, rel=0.1)


@pytest.mark.parametrize("numbers", [{"ranks": 0}, {"ranks": 2048}, {"ranks": 8, "shards": 3}])
def test_numbers_that_make_no_mesh_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"^a trace has 1 to 1,024 ranks"):
        trace_step(config(), patch_size=1, context_length=8, **numbers)
