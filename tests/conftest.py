"""Settings for all tests, made before anything heavy is imported."""

import gc
import os

import pytest

# Matrices here are tiny: a second thread would only wait for the first, and on a busy machine the
# two would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


# Begun first where files are shared out over workers: one of these, begun last, would keep all
# others waiting.
_LONG = (
    "test_demo.py", "test_nodes.py", "test_cluster.py", "test_killing.py", "test_runner.py",
    "test_live.py", "test_readme.py", "test_benchmarks.py", "test_evidence.py", "test_fuzz.py",
)  # fmt: skip


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: a quarter of the time the tests wait, for a signal or a second
    process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (cores or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONG)  # else in their order


def pytest_collection_finish() -> None:
    _leave_out_of_collections()


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new_is_collected() -> None:
    """As tests import more, and leave compiled code behind. No other module's fixtures live now."""
    gc.collect()
    _leave_out_of_collections()


def _leave_out_of_collections() -> None:
    """Have garbage collection pass over what is imported by now, hundreds of thousands of objects.

    Trainer collects twice a training, and a training here takes about a second.
    """
    gc.freeze()
