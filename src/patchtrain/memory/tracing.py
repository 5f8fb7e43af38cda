"""One training step of a model of any size on any number of processes, on one CPU, without data.

What a step would do on 1,024 GPUs can be run before there are any: torch's fake process group
answers as so many ranks would, its fake tensors have shapes and no data, and its ``MemTracker``
counts what lives. Everything else is the real thing: the model, patch level and its loss,
``fully_shard`` set up by accelerate as in training, AdamW. ``estimate.py`` tells the memory of a
plan in a few seconds; this is what it is checked against.

A process group is a matter of the whole process, so each trace runs in one of its own::

    python -m patchtrain.memory.tracing < request.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.loss_backends import Backend
from patchtrain.memory.dataless import (
    assume_flash,
    enable_checkpointing,
    without_data,
)
from patchtrain.memory.sharded import shard_shape
from patchtrain.modeling import PatchLevel, Probe
from patchtrain.uses import one_sequence_a_row

MOST_RANKS = 1024
_KINDS = {
    "Parameter": "parameters", "Buffer": "parameters", "Gradient": "gradients",
    "Optstate": "optimizer", "Activation": "activations", "Temp": "temporary",
    "Other": "parameters",
}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """What a step came to, on the first rank. Counts are elements, sizes bytes."""

    ranks: int
    shards: int  # ranks that share one copy of the model
    patch_size: int
    context_length: int
    sequences: int
    layers: int
    parameters: int  # of the whole model
    sharded_parameters: int  # this rank's part
    expected_part: int  # what it should be: first dimensions over the shards, rounded up
    wrong_shards: list[str]  # weights whose part is another
    gradients: int  # elements, of this rank's part, after the backward
    optimizer_bytes: int
    forward_bytes: int  # everything, after the forward
    peak_bytes: int
    at_peak: dict[str, int]  # by torch's kinds
    seconds: float


def trace_step(
    config: Any,
    *,
    ranks: int,
    patch_size: int,
    context_length: int,
    sequences: int = 1,
    shards: int | None = None,
    gradient_checkpointing: bool = False,
    bf16: bool = True,
    backend: str = "chunked",
    device: str = "cuda",
    timeout: float = 600,
) -> Trace:
    """Forward, backward and AdamW of one step on one of ``ranks`` fake ranks, sharded with FSDP2.

    Args:
        config: of a transformers causal LM; nothing of it but shapes matters.
        ranks: processes, 1 to 1,024.
        patch_size: K; 1 is the token level.
        context_length: T, positions of a sequence.
        sequences: of the device pass.
        shards: ranks that share one copy of the model (hybrid sharding); all if not given.
        gradient_checkpointing: layers are computed again in the backward.
        bf16: FSDP2's mixed precision, as the trainer sets it.
        backend: of the patch loss.
        device: ``"cuda"`` assumes flash attention; ``"cpu"`` what torch's kernel there keeps.
        timeout: seconds.

    Raises:
        UsageError: numbers that do not make a mesh, or a model that does not run without data.
        PatchtrainError: the trace's process failed otherwise, or took too long.
    """
    parts = ranks if shards is None else shards
    if not 1 <= ranks <= MOST_RANKS or not 1 <= parts <= ranks or ranks % parts:
        raise UsageError(
            f"a trace has 1 to {MOST_RANKS:,} ranks, of which the shards are a divisor; not "
            f"{ranks} ranks and {parts} shards"
        )
    request = {
        "config": json.loads(config.to_json_string(use_diff=False)),
        "ranks": ranks, "shards": parts, "patch_size": patch_size,
        "context_length": context_length, "sequences": sequences,
        "gradient_checkpointing": gradient_checkpointing, "bf16": bf16, "backend": backend,
        "device": device, "attention": config._attn_implementation,
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "patchtrain.memory.tracing"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise PatchtrainError(f"the trace took more than {timeout:.0f} seconds") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        failure = UsageError if done.returncode == 2 else PatchtrainError
        raise failure(f"the step cannot be traced: {one_line(last[0], 300)}")
    return Trace(**json.loads(done.stdout.splitlines()[-1]))


def _trace(request: dict[str, Any]) -> Trace:
    """The trace, in a process of its own."""
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers import AutoConfig, AutoModelForCausalLM

    begin = time.perf_counter()
    ranks, shards, K = request["ranks"], request["shards"], request["patch_size"]
    rows, length = request["sequences"], K * request["context_length"]
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mesh = _mesh(ranks, shards)  # outside of the mode: it looks at its numbers
    values = request["config"]
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = request["attention"]
    config.use_cache = False
    with FakeTensorMode(allow_non_fake_inputs=True), one_sequence_a_row(True):
        model = without_data(lambda: AutoModelForCausalLM.from_config(config), torch.float32)
        if request["device"] != "cpu":
            assume_flash(model.config)
        if request["gradient_checkpointing"]:
            enable_checkpointing(model)
        shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        model = _shard(model, mesh, request["bf16"])
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        # A step before the one that counts: the optimizer has its states then, and DTensor found
        # its ways, for which it makes whole tensors of every weight.
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        with _Values():
            _update(model, optimizer)
        optimizer.zero_grad()
        ids = torch.zeros(rows, length, dtype=torch.int64)
        tracker = _Tracker()
        tracker.track_external(model, optimizer, ids)
        found = Probe(fused=request["backend"] != "plain")
        level = PatchLevel(model, K, (1.0,) * K, found, Backend(request["backend"], "asked for"))
        with level, tracker, _Values():
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=request["bf16"]):
                loss = model(input_ids=ids, labels=ids).loss
            after_forward = _total(tracker.get_tracker_snapshot("current"))
            loss.backward()
            gradients = sum(w.grad.to_local().numel() for w in model.parameters())
            _update(model, optimizer)
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        at_peak: dict[str, int] = {}
        for kind, size in peak.items():
            if name := _KINDS.get(getattr(kind, "value", kind)):
                at_peak[name] = at_peak.get(name, 0) + size
        parts = {name: weight.to_local().numel() for name, weight in model.named_parameters()}
        expected = {
            name: torch.Size(shard_shape(shape, shards)).numel() for name, shape in shapes.items()
        }
        states = [v for state in optimizer.state.values() for v in state.values()]
        local = [v.to_local() if hasattr(v, "to_local") else v for v in states]
        return Trace(
            ranks=ranks,
            shards=shards,
            patch_size=K,
            context_length=request["context_length"],
            sequences=rows,
            layers=config.get_text_config().num_hidden_layers,
            parameters=sum(torch.Size(shape).numel() for shape in shapes.values()),
            sharded_parameters=sum(parts.values()),
            expected_part=sum(expected.values()),
            wrong_shards=[name for name in parts if parts[name] != expected[name]],
            gradients=gradients,
            optimizer_bytes=sum(value.numel() * value.itemsize for value in local),
            forward_bytes=after_forward,
            peak_bytes=_total({"": peak}),
            at_peak=at_peak,
            seconds=time.perf_counter() - begin,
        )


def _update(model: Any, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _mesh(ranks: int, shards: int) -> DeviceMesh:
    if ranks == shards:
        return init_device_mesh("cpu", (ranks,), mesh_dim_names=("shards",))
    sizes = (ranks // shards, shards)
    return init_device_mesh("cpu", sizes, mesh_dim_names=("replicas", "shards"))


def _shard(model: Any, mesh: DeviceMesh, bf16: bool) -> Any:
    """``model`` sharded by accelerate's own function, as the trainer has it (``sharding.py``)."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    plugin.mixed_precision_policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if bf16
        else MixedPrecisionPolicy()
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=mesh,
        parallelism_config=SimpleNamespace(fsdp_dim_names=mesh.mesh_dim_names),
        mixed_precision="bf16" if bf16 else "no",
        is_main_process=False,
        device=torch.device("cpu"),
    )
    return fsdp2_prepare_model(accelerator, model)


def _total(snapshot: dict[Any, dict[Any, int]]) -> int:
    return sum(sizes["Total"] for sizes in snapshot.values())


class _Tracker(MemTracker):
    """torch's, which looks for the peak of every module at every tensor made; here of the whole."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, sizes in self._curr_mem_snap.items():
            if sizes["Total"] > self._peak_mem.get(device, 0):
                self._peak_mem[device] = sizes["Total"]
                self._peak_mem_snap[device] = dict(sizes)


class _Values(TorchDispatchMode):
    """A tensor without data, asked for its value, is 1."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local tensors come back here
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


def main() -> int:
    request = json.load(sys.stdin)
    try:
        trace = _trace(request)
    except UsageError as error:
        print(one_line(error, 300), file=sys.stderr)
        return 2
    except Exception as error:  # a model's forward may fail in any way
        print(one_line(f"{type(error).__name__}: {error}", 300), file=sys.stderr)
        return 1
    print(json.dumps(asdict(trace)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
