"""The loss's matrix products in fp32, at the speed the CPU has.

On a CPU torch takes fp32 products from MKL, which uses AVX-512 on Intel's processors only. The
oneDNN that torch carries too uses it on all, and on AMD's is about twice as fast (docs/speed.md).
It has no product that writes to a given place, so it is called for a slab of the result at a time:
what it allocates stays small, and is still in the cache when it is moved.

Which of the two is taken follows from the processor alone, never from a measurement: a run gives
the same numbers each time it is started on a machine.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from patchtrain.machine import cpu_vendor

SLAB = 1024  # rows and columns of a result at a time


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """``out = left @ right``, or with ``add`` that added to ``out``; no gradient.

    Args:
        left: ``(N, M)``.
        right: ``(M, P)``; itself or its transpose contiguous, or torch's product is taken.
        out: ``(N, P)``, of the same dtype and device.
    """
    suits = out.device.type == "cpu" and out.dtype == torch.float32
    if suits and (right.is_contiguous() or right.T.is_contiguous()) and prefers_onednn():
        _with_onednn(left, right, out, add)
    elif add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN is here, and MKL leaves half of this processor unused."""
    return (
        cpu_vendor() == "AuthenticAMD"
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.backends.mkl.is_available()
        and has_onednn()
    )


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product, which has no public name."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _with_onednn(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    # Of matrices that are neither contiguous nor the transpose of one that is, oneDNN is slow
    # beyond measure: so the left side is copied, and only rows of a contiguous one are taken.
    columns = right.T
    width = SLAB if columns.is_contiguous() else out.shape[1]
    for row in range(0, out.shape[0], SLAB):
        part = left[row : row + SLAB].contiguous()
        for column in range(0, out.shape[1], width):
            place = out[row : row + SLAB, column : column + width]
            product = torch.ops.mkldnn._linear_pointwise(
                part, columns[column : column + width], None, "none", [], ""
            )
            if add:
                place += product
            else:
                place.copy_(product)
