"""What a checkpoint holds: weights, optimizer state, random numbers, as safetensors.

The tensors go through torch's distributed checkpoint, so that of a sharded model every process
writes and reads its own part, and what two processes wrote one or four can read. Writers and
readers are called on every process. Names are those of the plain model, whatever wraps it.
"""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchtrain.errors import PatchtrainError, one_line
from patchtrain.training.processes import rank


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors as safetensors; each process of a sharded model writes its own parts."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is only one process
        dcp.save(dict(tensors), storage_writer=writer)


def read_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill ``tensors`` in place with those of the same names in ``folder``."""
    if not tensors:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(dict(tensors), storage_reader=dcp.HuggingFaceStorageReader(str(folder)))


def tensor_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and dtypes of the tensors in ``folder``; nothing else is read."""
    if not any(folder.glob("*.safetensors")):
        return {}
    try:
        metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise PatchtrainError(f"{folder} cannot be read: {error}") from error
    found = metadata.state_dict_metadata.items()
    return {name: (entry.size, entry.properties.dtype) for name, entry in found}  # type: ignore[union-attr]


def write_weights(model: nn.Module, folder: Path) -> None:
    """Parameters and buffers of ``model`` into ``folder/weights``; tied ones once."""
    write_tensors(_own_tensors(model), folder / "weights")


def read_weights(model: nn.Module, folder: Path) -> None:
    """The opposite of ``write_weights``, in place.

    Raises:
        PatchtrainError: the model has other tensors than the checkpoint.
    """
    own = _own_tensors(model)
    stored = tensor_shapes(folder / "weights")
    here = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
    for name in sorted(here.keys() | stored.keys()):
        if here.get(name) != stored.get(name):
            raise PatchtrainError(
                f"{folder} is of another model: {name} is {_words(here.get(name))} here and "
                f"{_words(stored.get(name))} in the checkpoint"
            )
    with torch.no_grad():
        read_tensors(own, folder / "weights")


def _words(entry: tuple[torch.Size, torch.dtype] | None) -> str:
    return "missing" if entry is None else f"{tuple(entry[0])} {str(entry[1]).split('.')[-1]}"


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """State dict without the second names of tied tensors."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    persistent = model.state_dict(keep_vars=True)
    for name, tensor in persistent.items():
        if not isinstance(tensor, Tensor):
            raise PatchtrainError(
                f"the model keeps {name} as {type(tensor).__name__}, which a checkpoint cannot hold"
            )
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


# ---- the optimizer


def write_optimizer(model: nn.Module, optimizer: Any, folder: Path) -> dict[str, Any]:
    """The optimizer's state into ``folder/optimizer``; returns what of it is no tensor.

    That is, as JSON types, ``state``: numbers by parameter; ``groups``: the parameter groups, in
    which some optimizers keep a part of their state; ``tensors``: what the files must hold.

    Raises:
        PatchtrainError: there is something in it that is neither.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    names = _names_by_index(model, optimizer)
    packed = optimizer.state_dict()
    for index, state in packed["state"].items():
        for key, value in state.items():
            name = f"{names[index]} {key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                scalars[name] = _json_value(key, value)
    write_tensors(tensors, folder / "optimizer")
    groups = [
        {key: _json_value(key, value) for key, value in group.items() if key not in _NOT_KEPT}
        for group in packed["param_groups"]
    ]
    kept = {name: _describe(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    return {"state": scalars, "groups": groups, "tensors": kept}


def read_optimizer(model: nn.Module, optimizer: Any, folder: Path, rest: Mapping[str, Any]) -> None:
    """The opposite of ``write_optimizer``; the rates stay as they are now.

    Raises:
        PatchtrainError: the state is of another model or optimizer.
    """
    names = _names_by_index(model, optimizer)
    indices = {name: index for index, name in names.items()}
    parameters = dict(named_weights(model))
    tensors: dict[str, Tensor] = {}
    state: dict[int, dict[str, Any]] = {}

    def place(name: str) -> tuple[str, str]:
        parameter, _, key = name.partition(" ")
        if parameter not in indices or not key:
            raise PatchtrainError(f"{folder} has optimizer state of {name}, not in this model")
        return parameter, key

    stored = tensor_shapes(folder / "optimizer")
    for name in sorted(stored.keys() | rest["tensors"].keys()):
        found = _describe(*stored[name]) if name in stored else "missing"
        if found != rest["tensors"].get(name):
            raise PatchtrainError(f"{folder} has not the optimizer state it says: {name}, {found}")
    for name, (shape, dtype) in stored.items():
        parameter, key = place(name)
        like = parameters[parameter]
        if dtype.is_floating_point and dtype not in (like.dtype, torch.float32):
            raise PatchtrainError(
                f"{folder} has optimizer state of a strange dtype: {name}, {dtype}"
            )
        # What is as large as the parameter is sharded like it.
        value = torch.zeros_like(like, dtype=dtype, requires_grad=False) if like.shape == shape \
            else torch.zeros(shape, dtype=dtype)  # fmt: skip
        tensors[name] = value
        state.setdefault(indices[parameter], {})[key] = value
    for name, number in rest["state"].items():
        parameter, key = place(name)
        state.setdefault(indices[parameter], {})[key] = number
    read_tensors(tensors, folder / "optimizer")
    groups = optimizer.state_dict()["param_groups"]
    if len(groups) != len(rest["groups"]):
        raise PatchtrainError(f"{folder} has other parameter groups than this optimizer")
    for group, before in zip(groups, rest["groups"], strict=True):
        for key, value in before.items():
            if key not in _NOT_KEPT:
                if _kind(group.get(key)) not in (None, _kind(value)) and value is not None:
                    raise PatchtrainError(f"{folder} has {key} as {value!r:.40} in its optimizer")
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # It casts state to the dtype of the parameter; some optimizers keep it wider.
    for name, value in tensors.items():
        parameter, key = place(name)
        loaded = optimizer.state[parameters[parameter]]
        if loaded[key].dtype != value.dtype:
            loaded[key] = value.to(loaded[key].device)


# Of a parameter group: what the run's own recipe and schedule decide, and the parameters.
_NOT_KEPT = ("params", "lr", "initial_lr")


def _describe(shape: Iterable[int], dtype: torch.dtype) -> str:
    return f"{str(dtype).split('.')[-1]} {list(shape)}"


def _kind(value: Any) -> str | None:
    """What a value of a parameter group is, as far as one can stand for another."""
    if isinstance(value, list | tuple):
        return f"list of {[_kind(one) for one in value]}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None if value is None else type(value).__name__
    return "number"


def _json_value(key: str, value: Any) -> Any:
    """``value`` if JSON gives it back as it is (a tuple as a list)."""
    plain = list(value) if isinstance(value, tuple) else value
    scalars = plain if isinstance(plain, list) else [plain]
    if all(one is None or isinstance(one, bool | int | float | str) for one in scalars):
        return plain
    raise PatchtrainError(
        f"the optimizer keeps {key} as {type(value).__name__}, which a checkpoint cannot hold; "
        f"take another with training.optim, such as adamw_torch_fused"
    )


def named_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters by the names of the plain model, whatever wraps parts of it."""
    wrappers = re.compile(r"_orig_mod\.|_checkpoint_wrapped_module\.")
    return [(wrappers.sub("", name), parameter) for name, parameter in model.named_parameters()]


def _names_by_index(model: nn.Module, optimizer: Any) -> dict[int, str]:
    """The name of each parameter by its number in the optimizer's state dict."""
    names = {id(parameter): name for name, parameter in named_weights(model)}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: names[id(parameter)] for index, parameter in enumerate(order)}


# ---- random numbers


def write_random(folder: Path) -> None:
    """The state of this process's random number generators, of Python, numpy and torch."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    tensors = {
        "python": torch.tensor(numbers, dtype=torch.int64),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = {
        "python": [version, gauss],
        "numpy": [legacy["state"]["pos"], legacy["has_gauss"], legacy["gauss"]],
    }
    file = folder / "random" / f"{rank()}.safetensors"
    save_file(tensors, file, metadata={"rest": json.dumps(rest)})


def read_random(folder: Path) -> bool:
    """The opposite of ``write_random``; False if the checkpoint has none for this process.

    Raises:
        PatchtrainError: what it has is no state of a generator.
    """
    file = folder / "random" / f"{rank()}.safetensors"
    if not file.is_file():
        return False
    try:
        tensors = load_file(file)
        with safe_open(file, "pt") as opened:
            rest = json.loads(opened.metadata()["rest"])
        version, gauss = rest["python"]
        random.setstate((version, tuple(tensors["python"].tolist()), gauss))
        position, has_gauss, normal = rest["numpy"]
        key = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", key, position, has_gauss, normal))
        torch.set_rng_state(tensors["cpu"])
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PatchtrainError(f"{file} cannot be read: {one_line(error)}") from error
    return True
