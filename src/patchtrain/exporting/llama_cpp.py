"""llama.cpp on a GGUF file, by way of the package xllamacpp.

It runs in a process of its own: llama.cpp ends the process where it does not like a file, and
writes to the terminal what it pleases.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchtrain import chat
from patchtrain.errors import PatchtrainError, one_line

_SECONDS = 600


@dataclass(frozen=True)
class Answers:
    """What llama.cpp made of a file: token ids it wrote, ids of a text, a rendered conversation."""

    tokens: list[int]
    text_ids: list[int]
    rendered: str


def available() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


def run(
    file: Path,
    prompt: Sequence[int],
    new_tokens: int,
    text: str = "",
    messages: chat.Messages | None = None,
) -> Answers:
    """The likeliest tokens after ``prompt`` (no end token among them), ``text`` as token ids, and
    ``messages`` in the chat template up to where an answer begins. On the CPU.

    Raises:
        PatchtrainError: llama.cpp does not take the file, with the last that it said.
    """
    asked = {
        "file": str(file),
        "context": len(prompt) + new_tokens + 8,
        "completion": {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "temperature": 0,
            "return_tokens": True,
            "ignore_eos": True,
        },
        "text": text,
        "messages": messages or [{"role": "user", "content": ""}],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PatchtrainError(f"llama.cpp did not come to an end in {_SECONDS} seconds") from None
    try:
        return Answers(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        lines = done.stderr.strip().splitlines() or ["nothing was said"]
        last = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])
        raise PatchtrainError(f"llama.cpp does not take it: {one_line(last)}") from None


def _serve(asked: dict[str, Any]) -> dict[str, Any]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["file"]
    params.n_ctx = asked["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    # It listens on this machine's loopback only, at a port of its own. The requests are those of
    # llama.cpp's server: only they give back token ids.
    server = xllamacpp.Server(params)
    rendered = {"messages": asked["messages"]}
    text = {"content": asked["text"], "add_special": True}
    return {
        "tokens": _post(server, "completion", asked["completion"])["tokens"],
        "text_ids": _post(server, "tokenize", text)["tokens"],
        "rendered": _post(server, "apply-template", rendered)["prompt"],
    }


def _post(server: Any, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.listening_address}/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with without_proxy.open(request, timeout=_SECONDS) as response:
        return json.load(response)


if __name__ == "__main__":
    print(json.dumps(_serve(json.load(sys.stdin))))
