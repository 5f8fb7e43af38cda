"""What a model does to its embeddings and logits, found by trying it.

``probe`` runs a model on a few tokens, plainly and as patches, and says how patch level can take
its loss, or refuses it by name. ``probe_documents`` does the same for documents packed in one row.
Nothing here knows the name of a model.

A fresh model hides what it will do: whatever passes a weight of zero shows nothing yet. Within a
probe such weights hold small random numbers (``_untouched``), and are zero again after it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtrain.errors import UsageError
from patchtrain.head_probing import close, probe_head, same_loss
from patchtrain.modeling import PatchLevel, Probe, input_embeddings

_TOKENS = 8
_CUT = 5  # no multiple of 2, 3 or 4, so that blocks of tokens that see each other lie across it


@torch.no_grad()
def probe(model: nn.Module) -> Probe:
    """Check on a few tokens that patch level is exact for ``model``, and how its head works.

    - No logits may depend on later tokens.
    - Two identical tokens pool to the token's own embedding, so a patch of them must put the very
      same numbers into every module, and give the same logits. A module that only ``input_ids``
      reach is found even if it does nothing yet.
    - In train mode the model's own loss must be next-token cross-entropy, plus a multiple of its
      auxiliary loss, and patches of different tokens must run.
    - The loss that skips the head must be the loss from full logits; where it is not, the loss is
      taken from full logits.

    Raises:
        UsageError: naming the model's class and what went wrong.
    """
    ids = _token_ids(model, _TOKENS)
    with _refusing(model, "be trained at patch level") as step, _untouched(model):
        step.tries = "run on plain input_ids"
        model.eval()
        with _watched(model) as plain_run:
            plain = model(input_ids=ids, use_cache=False).logits
        if not bool(plain.isfinite().all()):
            raise UsageError(f"{type(model).__name__} gives logits that are not finite numbers")
        step.tries = "take pooled inputs_embeds in place of input_ids"
        with _level(model), _watched(model) as pooled_run:
            pooled = model(input_ids=ids.repeat_interleave(2, dim=1)).logits
        _check_same(model, step, plain_run, pooled_run)
        if pooled.shape != plain.shape or not close(pooled, plain, model):
            raise step.refusal("a patch of identical tokens does not give the token's own logits")
        _check_causal(model, step, ids, plain)
        step.tries = "train at token level"
        model.train()
        auxiliary = _own_loss(model, step, ids)
        step.tries = "train on patches"
        with _level(model, auxiliary):
            outputs = model(input_ids=ids, labels=ids)
        if auxiliary and not isinstance(getattr(outputs, "aux_loss", None), Tensor):
            raise step.refusal("it makes its auxiliary loss only where it makes its own loss")
        model.eval()
        found = dataclasses.replace(probe_head(model, ids), auxiliary=auxiliary)
        return same_loss(model, ids, found)


@torch.no_grad()
def probe_documents(model: nn.Module) -> None:
    """Check that documents packed in one row, told apart by positions that restart, stay apart.

    Each document of a packed row must give the logits that it gives alone, at token level and at
    patch level, and in train mode no logits of a document may depend on another. Passes are as in
    training: positions that restart at 0, no attention mask, ``use_cache=False`` (transformers
    builds the packed mask only where there is neither mask nor cache).

    Raises:
        UsageError: naming the model's class and what mixes its documents.
    """
    lengths = torch.tensor([[6], [4]])  # of the first of two documents, in two rows
    ids = _token_ids(model, 20).view(2, 10)
    order = torch.arange(10).expand(2, -1)
    second = (order >= lengths).to(ids.device)
    positions = torch.where(order < lengths, order, order - lengths).to(ids.device)

    def apart() -> bool:
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        patch_size = ids.shape[1] // packed.shape[1]
        for row, length in enumerate(lengths.flatten().tolist()):
            for start, stop in ((0, length), (length, ids.shape[1])):
                alone = model(input_ids=ids[row : row + 1, start:stop], use_cache=False).logits[0]
                together = packed[row, start // patch_size : stop // patch_size]
                if alone.shape != together.shape or not close(together, alone, model):
                    return False
        return True

    def mixed() -> bool:
        return _depends(model, ids, sinks=second, sources=~second, position_ids=positions)

    with _refusing(model, "keep packed documents apart") as step, _untouched(model):
        step.tries = "run with position_ids that restart"
        model.eval()
        if mixed():
            if "position_ids" not in inspect.signature(model.forward).parameters:
                raise step.refusal("its forward takes no position_ids")
            raise step.refusal("a document depends on the one before it in the row")
        if not apart():
            raise step.refusal("a document does not give the logits that it gives alone")
        model.train()
        if mixed():
            raise step.refusal("in train mode a document depends on the one before it in the row")
        model.eval()
        with _level(model):
            if not apart():
                raise step.refusal("at patch level a document does not give what it gives alone")


@torch.no_grad()
def probe_positions(model: nn.Module) -> None:
    """Check that positions further apart than one are mere distances to ``model``, as rotary ones.

    Logits must be the same wherever the row begins, must change with the distances, and tokens far
    apart must still see each other. Learned positions differ from place to place, and those that a
    run has never met at patch level would be untrained.

    Raises:
        UsageError: naming the model's class and what is wrong with its positions.
    """
    ids = _token_ids(model, 4)
    order = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    mask = torch.ones_like(ids)  # see ``PatchLevel._stretched``

    def logits(positions: Tensor) -> Tensor:
        inputs = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
        found: Tensor = model(input_ids=ids, **inputs).logits
        return found

    def sees(sinks: Tensor, sources: Tensor) -> bool:
        return _depends(model, ids, sinks, sources, position_ids=2 * order, attention_mask=mask)

    with _refusing(model, "be trained with position_scale") as step, _untouched(model):
        step.tries = "run with position_ids"
        model.eval()
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise step.refusal("its forward takes no position_ids")
        plain = logits(order)
        if not close(logits(order + 1), plain, model):
            raise step.refusal(
                "its logits depend on where a row begins, as learned positions make them; only "
                "rotary positions can be further apart"
            )
        if torch.equal(logits(2 * order), plain):
            raise step.refusal("its logits do not depend on position_ids")
        if not sees(order == 3, order == 0) or sees(order < 3, order == 3):
            raise step.refusal("positions that are further apart change what a token sees")


# ---- the conditions of a probe


@dataclass
class _Step:
    """What a probe tries, and the words with which it refuses."""

    refused: str
    tries: str = "run"

    def refusal(self, why: str) -> UsageError:
        return UsageError(f"{self.refused}: {why}")


@contextmanager
def _refusing(model: nn.Module, what: str) -> Iterator[_Step]:
    """Whatever goes wrong in the block is one line that names the model's class."""
    step = _Step(f"{type(model).__name__} cannot {what}")
    try:
        yield step
    except UsageError:
        raise
    except Exception as error:  # a model's forward may fail in any way
        why = " ".join(str(error).split())[:300]
        raise step.refusal(f"its forward does not {step.tries} ({why})") from error


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Weights of zero are random within the block; after it, all is as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    zeros = [
        parameter
        for parameter in model.parameters()
        if parameter.is_floating_point()
        and type(parameter.data) is Tensor  # sharded ones are left alone
        and parameter.numel()
        and not bool(parameter.any())
    ]
    device = input_embeddings(model).weight.device
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        try:
            for parameter in zeros:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
            yield
        finally:
            for parameter in zeros:
                parameter.zero_()
            for buffer, value in buffers:
                buffer.copy_(value)
            for module, mode in modes.items():
                module.training = mode


def _token_ids(model: nn.Module, count: int) -> Tensor:
    """``(1, count)`` token ids, different as far as the vocabulary goes, none of them padding."""
    weight = input_embeddings(model).weight
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    ids = (torch.arange(count + 1) * 7 + 3).remainder(weight.shape[0])
    return ids[ids != (-1 if padding is None else padding)][:count].unsqueeze(0).to(weight.device)


def _level(model: nn.Module, auxiliary: float | None = None) -> PatchLevel:
    """Patch level of two tokens a patch, with the loss from full logits."""
    return PatchLevel(model, 2, (1.0, 1.0), Probe(fused=False, auxiliary=auxiliary))


# ---- what a model must do


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Note what goes into each module with parameters of its own, by the module's name."""
    run: dict[str, list[Tensor]] = {}
    embedding = set(input_embeddings(model).modules())  # sees tokens in both runs

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            values = run.setdefault(name, [])
            if args and isinstance(args[0], Tensor) and args[0].is_floating_point():
                values.append(args[0].detach().clone())

        return hook

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if name
        and module not in embedding
        and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield run
    finally:
        for handle in hooks:
            handle.remove()


def _check_same(
    model: nn.Module,
    step: _Step,
    plain: dict[str, list[Tensor]],
    pooled: dict[str, list[Tensor]],
) -> None:
    """Refuse a model into whose modules a patch of identical tokens puts what a token does not."""
    more = "so it does more with input_ids than embed them"
    if skipped := plain.keys() - pooled.keys():
        raise step.refusal(
            f"its {min(skipped)} is run on input_ids and not on inputs_embeds, {more}"
        )
    for name, values in plain.items():
        others = pooled[name]
        if not values or not others:
            continue  # where one run passes ids, only a length can be meant
        same = len(values) == len(others) and all(
            got.shape == value.shape and close(got, value, model)
            for got, value in zip(others, values, strict=True)
        )
        if not same:
            raise step.refusal(
                f"a patch of identical tokens gives its {name} other numbers than the token "
                f"itself, {more}"
            )


def _check_causal(model: nn.Module, step: _Step, ids: Tensor, logits: Tensor) -> None:
    """Refuse a model whose logits depend on later tokens, by gradient or by choice of experts."""
    why = "it is not causal: its logits depend on later tokens"
    later = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) >= _CUT
    changed = torch.where(later, ids.roll(_CUT, dims=1), ids)
    after = model(input_ids=changed, use_cache=False).logits
    if not close(after[:, :_CUT], logits[:, :_CUT], model):
        raise step.refusal(why)
    if _depends(model, ids, sinks=~later, sources=later):
        raise step.refusal(why)


def _depends(model: nn.Module, ids: Tensor, sinks: Tensor, sources: Tensor, **inputs: Any) -> bool:
    """Whether logits at ``sinks`` have a gradient in the embeddings at ``sources``.

    Both are ``(B, S)`` and boolean. What a mask keeps out has a gradient of exactly zero, whatever
    the dtype, and dropout in train mode does not blur it.
    """
    embeddings = input_embeddings(model)(ids).detach().requires_grad_()
    with torch.enable_grad():
        inputs |= {"inputs_embeds": embeddings.clone(), "use_cache": False}
        score = model(**inputs).logits[sinks].float().square().sum()
        (gradient,) = torch.autograd.grad(score, embeddings)
    sizes = gradient.float().abs()
    return not bool(sizes[sources].max() <= 1e-6 * sizes.max())  # also if it is not a number


def _own_loss(model: nn.Module, step: _Step, ids: Tensor) -> float | None:
    """The weight of the auxiliary loss in the model's own loss, None if it has no such loss.

    The own loss is what trains the model at token level, so it must be next-token cross-entropy.
    """
    if "labels" not in inspect.signature(model.forward).parameters:
        return None  # a loop of one's own may bring the token-level loss
    embeddings = input_embeddings(model)(ids).detach().requires_grad_()
    with torch.enable_grad():
        outputs = model(inputs_embeds=embeddings.clone(), labels=ids, use_cache=False)
        loss, extra, weight = outputs.loss, getattr(outputs, "aux_loss", None), None
        if isinstance(extra, Tensor):
            weight = 0.0
            if extra.requires_grad:
                # Read off the graph: by differences of losses it would be lost in rounding.
                (slope,) = torch.autograd.grad(loss, extra, retain_graph=True, allow_unused=True)
                weight = 0.0 if slope is None else float(slope)
        if outputs.logits is None:
            return weight  # kernels that replace a model's loss make none: nothing to compare with
        (slope,) = torch.autograd.grad(loss, outputs.logits, allow_unused=True)
        logits = outputs.logits.detach().requires_grad_()
        entropy = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())
        (expected,) = torch.autograd.grad(entropy, logits)
    if isinstance(extra, Tensor) and weight:
        entropy = entropy + weight * extra.float()
    # All losses of an untrained model lie near log V: which targets they have, gradients tell.
    tolerance = 1e-4 if loss.dtype == torch.float32 else 1e-2
    same = abs(float(loss) - float(entropy)) <= tolerance * abs(float(entropy))
    if not same or not (slope is None or close(slope, expected, model)):
        raise step.refusal(
            f"its own loss at token level is {float(loss):.6f}, where next-token cross-entropy is "
            f"{float(entropy):.6f}, so it trains something else"
        )
    return weight
