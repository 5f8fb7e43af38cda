"""How much memory training takes on each device, told before anything is trained.

``estimate.py`` adds it up, ``live.py`` counts what lives in a pass on tensors without data
(``dataless.py``), ``optimizer.py`` what an optimizer holds, ``sharded.py`` what FSDP2 gathers.
``tracing.py`` runs a whole step on so many fake ranks, which the estimate is checked against.
"""

from patchtrain.memory.estimate import (
    Memory,
    Training,
    estimate,
    fits,
    memory_of,
    what_would_fit,
)

__all__ = ["Memory", "Training", "estimate", "fits", "memory_of", "what_would_fit"]
