"""Packages that a plain install leaves out, and the extra of ``pyproject.toml`` that brings each.

They are imported where they are used, never when a module of ours is; what cannot be done without
one says, in one line, what to install.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from patchtrain.errors import UsageError, one_line

# By the name they are imported under: the name a reader knows, and the extra.
PACKAGES = {
    "lm_eval": ("lm-eval", "eval"),
    "immutabledict": ("immutabledict", "eval"),
    "langdetect": ("langdetect", "eval"),
    "nltk": ("nltk", "eval"),
    "trl": ("TRL", "sft"),
    "liger_kernel": ("liger-kernel", "gpu"),
    "cut_cross_entropy": ("cut-cross-entropy", "gpu"),
    "tensorboard": ("tensorboard", "plots"),
    "datatrove": ("datatrove", "cluster"),
    "ray": ("Ray", "cluster"),
    "gguf": ("gguf", "export"),
    "xllamacpp": ("xllamacpp", "llama-cpp"),
    "optuna": ("optuna", "sweep"),
}


def how_to_install(package: str) -> str:
    """``pip install 'patchtrain[EXTRA]'`` for a package, by its name in ``PACKAGES``."""
    return f"pip install 'patchtrain[{PACKAGES[package][1]}]'"


def require(package: str, what: str, otherwise: str = "") -> ModuleType:
    """Import a package of an extra.

    Args:
        package: a name of ``PACKAGES``.
        what: the flag, entry or thing that needs it; the sentence begins with it.
        otherwise: what can be done without it, if anything.

    Raises:
        UsageError: it is not installed, or what is there cannot be imported: the line says why.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "" if absent else f" ({one_line(error)})"
        instead = f"; {otherwise}" if otherwise else ""
        raise UsageError(
            f"{what} needs {PACKAGES[package][0]}{reason}: {how_to_install(package)}{instead}"
        ) from error
