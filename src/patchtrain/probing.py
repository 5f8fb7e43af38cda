"""What a model does to its embeddings and logits, found by trying it.

``probe`` runs a model on a few tokens, plainly and as patches, and says how patch level can take
its loss, or refuses it by name. Nothing here knows the name of a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchtrain.errors import UsageError
from patchtrain.modeling import PatchLevel, Probe, input_embeddings, output_embeddings, skipped_head

_PROBE_TOKENS = 6


@torch.no_grad()
def probe(model: nn.Module) -> Probe:
    """Check on a few tokens that patch level is exact for ``model``, and how its head works.

    Two identical tokens pool to the token's own embedding, so a patch of them must give the very
    hidden states and logits that the token gives, through the very same modules: a module that is
    run only where there are ``input_ids`` may do nothing yet in a fresh model, and something later.
    Then a patch of different tokens must run at all, and the loss that skips the head must be the
    loss from full logits. A model that does more with ``input_ids`` than embed them fails, and is
    refused by name; one whose two losses differ gets its loss from full logits.

    Raises:
        UsageError: naming the model's class and what went wrong.
    """
    refused = f"{type(model).__name__} cannot be trained at patch level: "
    embedding = input_embeddings(model).weight
    ids = torch.arange(_PROBE_TOKENS, device=embedding.device) * 7 + 1
    ids = ids.remainder(embedding.shape[0]).unsqueeze(0)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _watched(model) as plain_run:
            plain = model(input_ids=ids, use_cache=False).logits
        if not bool(plain.isfinite().all()):
            raise UsageError(f"{type(model).__name__} has weights that are not finite numbers")
        with PatchLevel(model, 2, (1.0, 1.0), Probe(fused=False)), _watched(model) as pooled_run:
            pooled = model(input_ids=ids.repeat_interleave(2, dim=1)).logits
        if skipped := plain_run.modules - pooled_run.modules:
            raise UsageError(
                f"{refused}its {sorted(skipped)[0]} is run on input_ids and not on inputs_embeds, "
                f"so it does more with input_ids than embed them"
            )
        pairs = [(pooled, plain), *zip(pooled_run.head_inputs, plain_run.head_inputs, strict=True)]
        if not all(a.shape == b.shape and _close(a, b, b.dtype) for a, b in pairs):
            raise UsageError(
                f"{refused}a patch of identical tokens does not give the token's own hidden "
                f"states, so it does more with input_ids than embed them"
            )
        return _same_loss(model, ids, _probe_head(model, ids))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{refused}its forward does not take pooled inputs_embeds in place of input_ids "
            f"({' '.join(str(error).split())})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_documents(model: nn.Module) -> None:
    """Check that documents packed in one row, told apart by positions that restart, stay apart.

    Each document of a packed row must give the logits that it gives alone, at token level and at
    patch level, and in train mode nothing may flow back from one document into the other. Passes
    are as in training: positions that restart at 0, no attention mask, ``use_cache=False``
    (transformers builds the packed mask only where there is neither mask nor cache).

    Raises:
        UsageError: naming the model's class and what mixes its documents.
    """
    refused = f"{type(model).__name__} cannot keep packed documents separate: "
    device = input_embeddings(model).weight.device
    lengths = ((6, 4), (4, 6))  # two rows, since masks may be made for one row only
    ids = _token_ids(model, 2 * sum(lengths[0])).view(2, -1)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    positions = positions.to(device)

    def differs(**inputs: Tensor) -> bool:
        packed = model(**inputs, position_ids=positions, use_cache=False).logits
        level = ids.shape[1] // packed.shape[1]
        for row, cut in enumerate(first for first, _ in lengths):
            for part in (slice(0, cut), slice(cut, None)):
                alone = {name: value[row : row + 1, part] for name, value in inputs.items()}
                expected = model(**alone, use_cache=False).logits[0]
                got = packed[row, part.start // level : part.stop and part.stop // level]
                if got.shape != expected.shape or not _close(got, expected, expected.dtype):
                    return True
        return False

    def leaks() -> bool:
        """Whether the second document's logits depend on the first's embeddings."""
        embeddings = input_embeddings(model)(ids).detach().requires_grad_()
        inputs = {"inputs_embeds": embeddings, "position_ids": positions, "use_cache": False}
        with torch.enable_grad():
            logits = model(**inputs).logits
            seconds = sum(logits[row, cut:].float().square().sum() for row, (cut, _) in rows)
        (gradient,) = torch.autograd.grad(seconds, embeddings)
        return any(bool(gradient[row, :cut].any()) for row, (cut, _) in rows)

    rows = list(enumerate(lengths))
    try:
        with _quiet(model), torch.no_grad():
            model.eval()
            if differs(input_ids=ids):
                why = (
                    "a document's logits depend on the one before it in the row"
                    if leaks()
                    else "a document does not give the logits that it gives alone"
                )
                raise UsageError(f"{refused}{why} ({_takes_positions(model)})")
            model.train()
            if leaks():
                raise UsageError(f"{refused}in train mode a document depends on the one before it")
            model.eval()
            with PatchLevel(model, 2, (1.0, 1.0), Probe(fused=False)):
                if differs(input_ids=ids):
                    raise UsageError(f"{refused}patches of a document depend on other documents")
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{refused}its forward does not run with position_ids that restart "
            f"({' '.join(str(error).split())})"
        ) from error


def _takes_positions(model: nn.Module) -> str:
    if "position_ids" in inspect.signature(model.forward).parameters:
        return "position_ids that restart do not separate them"
    return "its forward takes no position_ids"


def _token_ids(model: nn.Module, count: int) -> Tensor:
    """``(1, count)`` token ids, different as far as the vocabulary goes."""
    weight = input_embeddings(model).weight
    ids = torch.arange(count, device=weight.device) * 7 + 1
    return ids.remainder(weight.shape[0]).unsqueeze(0)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Leave modes and random numbers as they are found."""
    modes = {module: module.training for module in model.modules()}
    device = input_embeddings(model).weight.device
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class _Run:
    """What a forward pass went through."""

    modules: set[str]
    head_inputs: list[Tensor]


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Run]:
    """Note which modules with parameters of their own run, and what the head receives."""
    run = _Run(set(), [])
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: run.modules.add(name))
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    ]
    hooks.append(
        output_embeddings(model).register_forward_pre_hook(
            lambda _, args: run.head_inputs.append(args[0])
        )
    )
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


def _same_loss(model: nn.Module, ids: Tensor, found: Probe) -> Probe:
    """``found``, if its loss is that of full logits, on patches of different tokens."""
    losses = []
    for candidate in (Probe(fused=False), found):
        with PatchLevel(model, 2, (1.0, 1.0), candidate):
            losses.append(model(input_ids=ids, labels=ids).loss)
    if _close(losses[1], losses[0], output_embeddings(model).weight.dtype):
        return found
    plain, fused = (float(loss) for loss in losses)
    return Probe(False, reason=f"without its logits the loss is {fused:.6f}, with them {plain:.6f}")


def _probe_head(model: nn.Module, ids: Tensor) -> Probe:
    """Whether logits are a multiple of the head's own output, also where they are large.

    A freshly initialised model has tiny logits, on which softcapping is invisible: the head's
    input is scaled up until its output reaches about 100.
    """
    head = output_embeddings(model)
    received: list[Tensor] = []

    def enlarge(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = nn.functional.linear(args[0], head.weight).abs().max().clamp(min=1e-6)
        received.append(args[0] * (100.0 / largest).to(args[0].dtype))
        return (received[-1], *args[1:])

    hook = head.register_forward_pre_hook(enlarge)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        hook.remove()
    if not received:
        return Probe(False, reason="the model does not call its output embedding as a module")
    bias = getattr(head, "bias", None)
    linear = nn.functional.linear(received[-1], head.weight, bias).double()
    if linear.shape != logits.shape:
        return Probe(False, reason="the model's logits are not those of its output embedding")
    # Least squares for one factor: granite divides its logits, cohere multiplies them.
    if not float(linear.abs().max()) > 0 or not float(logits.abs().max()) > 0:
        return Probe(False, reason="the head's weights are all zero, so its scale cannot be seen")
    scale = float((linear * logits).sum() / linear.square().sum())
    scale = 1.0 if abs(scale - 1.0) < 1e-3 else float(f"{scale:.6g}")
    if not _close(linear * scale, logits, head.weight.dtype):
        return Probe(False, reason="the model bends its logits (softcapping or the like)")
    try:
        with skipped_head(model):
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, IndexError) as error:
        return Probe(False, reason=f"the model needs its logits in its forward ({error})")
    return Probe(True, scale)


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of ``dtype``, relative to the largest entry."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(((got - expected).abs().max() / scale) < tolerance)
