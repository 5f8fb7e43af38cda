"""The whole examination, area by area."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from patchtrain.doctor.finding import Finding
from patchtrain.machine import usable_cores

Step = Callable[[str], None]


def examine(
    folder: Path, measure: bool = True, step: Step = lambda name: None
) -> Iterator[tuple[str, list[Finding]]]:
    """Areas with what was found in each, as it is found.

    Args:
        folder: where runs are to go; a small file is written to it, and deleted.
        measure: also measure how fast matrices are multiplied, for some seconds.
        step: is told what is being looked at.
    """
    from patchtrain.doctor import devices, packages

    step("versions")
    found = [*packages.python_and_packages()]
    if any(finding.status == "broken" for finding in found):
        # The rest would end in the traceback of an import.
        yield "versions", found
        return
    import torch

    yield "versions", [*found[:1], packages.torch_build(torch), *found[1:]]
    from patchtrain.doctor import places, speed, training

    step("devices")
    threads = torch.get_num_threads()
    yield "devices", [
        devices.processor(threads), devices.main_memory(), *devices.accelerators(torch)
    ]  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    step("training")
    yield "training", [
        *training.losses(device, dtype), training.attention(device, dtype), training.compiler(),
        training.shared_memory(),
    ]  # fmt: skip
    if measure:
        step("speed")
        yield "speed", [*speed.judged(speed.measure(device, usable_cores(), step))]
    step("places")
    yield "places", [*places.run_folder(folder), places.model_cache(), places.settings()]
