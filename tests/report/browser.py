"""A headless Chromium for the tests that must see the page as a person does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage --no-proxy-server --host-resolver-rules=MAP\t*\t~NOTFOUND"
)


def find_browser() -> str:
    """The browser's path; skips the test without one, or fails if one is required."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    message = f"no browser found ({', '.join(NAMES)})"
    if os.environ.get("PATCHTRAIN_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


def dump_dom(page: Path, profile: Path) -> str:
    """The document after its scripts have run."""
    flags = [flag.replace("\t", " ") for flag in FLAGS.split(" ")]
    command = [find_browser(), *flags, f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=10000", "--window-size=1200,900", "--dump-dom"]
    done = subprocess.run(
        [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
