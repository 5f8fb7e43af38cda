"""Settings for all tests, made before anything heavy is imported."""

import gc
import os

# Matrices here are tiny: a second thread would only wait for the first, and on a busy machine the
# two would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def pytest_collection_finish() -> None:
    """Have garbage collection pass over what is imported by now, hundreds of thousands of objects.

    Trainer collects twice a training, and a training here takes about a second.
    """
    gc.freeze()
