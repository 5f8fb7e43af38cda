"""The ``patchtrain`` command: finds the subcommand, runs it, turns errors into one line."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from patchtrain import __version__
from patchtrain.cli import completion, results, train
from patchtrain.cli.parser import Parser
from patchtrain.errors import PatchtrainError, memory_ran_out, one_line, warning_line

# Where a message ends: a long list of problems fits, the content of a file does not.
_LONGEST_MESSAGE = 2000

# What takes less memory, where a command has something that does.
_LESS_MEMORY = {
    "train": ": make training.per_device_train_batch_size smaller, which leaves the step as it is, "
    "or set training.activation_checkpointing=true",
    "eval": ": give a smaller --batch-size",
    "generate": ": give a smaller --batch-size or --num-samples",
    "sft": ": give a smaller --tokens-per-step or --context-length",
}

# In the order a newcomer meets them.
COMMANDS = (
    "demo",
    "prepare",
    "link",
    "inspect",
    "plan",
    "train",
    "watch",
    "eval",
    "generate",
    "chat",
    "sft",
    "export",
    "card",
    "compare",
    "study",
    "report",
    "doctor",
    "completion",
)

DOC = """\
Train causal language models at a fraction of the compute, on patches of K tokens first, then on
single tokens; the result is a plain Hugging Face checkpoint.

examples:
  patchtrain demo                                   # see it work, about five minutes, no download
  patchtrain doctor                                 # what this machine has, what will be slow
  patchtrain prepare corpus/ --out stores/text
  patchtrain link openwebtext/ --tokenizer gpt2 --out stores/owt    # token files you have
  patchtrain inspect stores/text                    # what is in a patch of it
  patchtrain plan recipes/small.yaml --device h100  # what a run costs
  patchtrain train recipes/small.yaml plan.patch_size=2
  patchtrain watch runs/small                       # in the terminal and the browser
  patchtrain eval runs/small
  patchtrain generate runs/small "The cat"
  patchtrain sft runs/small --data alpaca.json
  patchtrain chat runs/small-sft
  patchtrain export runs/small --to gguf            # for llama.cpp

`patchtrain COMMAND --help` explains each command. --json prints results for a program, on stdout;
notes and progress go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C. Output is
in colour on a terminal, unless NO_COLOR is set."""


def build_parser() -> Parser:
    """The parser with every subcommand; imports no heavy package."""
    parser = Parser(prog="patchtrain", doc=DOC)
    parser.add_argument("--version", action="version", version=f"patchtrain {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name in COMMANDS:
        module = importlib.import_module(f"patchtrain.cli.{name}")
        sub = commands.add_parser(name, help=module.HELP, doc=module.__doc__)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 on success, 1 on failure, 2 on wrong usage, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names of files need not be text, and not every terminal can show all text.
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    # A scheduler's SIGTERM ends a command as Ctrl-C does: what is half done is cleaned up.
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    try:
        with _warnings_in_one_line():
            args = _parsed(words)
            with results.only_json() if getattr(args, "json", False) else nullcontext():
                return int(args.run(args) or 0)
    except _Terminated:
        return _fail("terminated", 128 + signal.SIGTERM, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PatchtrainError as error:
        return _fail(str(error), error.exit_code, debug)
    except Exception as error:
        if full := _disk_full(error):
            return _fail(full, 1, debug)
        if memory_ran_out(error):
            todo = _LESS_MEMORY.get(words[0], "")
            return _fail(f"there is not enough memory{todo}", 1, debug)
        if isinstance(error, OSError) and error.filename and error.strerror:
            return _fail(f"{error.filename}: {error.strerror.lower()}", 1, debug)
        reason = one_line(f"{type(error).__name__}: {error}", limit=500)
        return _fail(f"{reason} (--debug shows where)", 1, debug)
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _parsed(words: list[str]) -> argparse.Namespace:
    """The command's arguments; its own parser as ``parser``, what is to be called as ``run``."""
    parser = build_parser()
    completion.complete(parser)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words[:1] == ["train"]:
        words = train.explicit(words)
    args, rest = parser.parse_known_args(words)
    # argparse gives up on key=value pairs that follow a flag: they are ours all the same.
    if rest and hasattr(args, "overrides") and not any(word.startswith("-") for word in rest):
        args.overrides += rest
    elif rest:
        args.parser.refuse(rest)
    return args


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Our own warnings in the style of our errors; those of libraries as they are."""
    before, package = warnings.formatwarning, str(Path(__file__).parents[1])

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        line: str | None = None,
    ) -> str:  # fmt: skip
        if filename.startswith(package):
            return f"{warning_line(message)}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Terminated(SystemExit):
    """SIGTERM arrived."""


def _terminate(number: int, frame: FrameType | None) -> None:
    if sys.exception() is None:
        raise _Terminated
    # It is ending with an error that it has yet to say: torchrun sends SIGTERM to what is left of a
    # run whose first process has died. The next signal counts.
    signal.signal(signal.SIGTERM, _terminate_at_once)


def _terminate_at_once(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _disk_full(error: BaseException | None) -> str | None:
    """The message for a full disk, also where a library wrapped the error in one of its own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # a chain of errors may be a ring
        seen.append(error)
        text = str(error)
        # The two texts are how safetensors and torch.save report it.
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or "os error 28" in text or "inline_container.cc" in text:
            where = f" while writing {name}" if (name := getattr(error, "filename", None)) else ""
            return f"the disk is full{where}; free some space, then try again"
        error = error.__cause__ or error.__context__
    return None


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if not _said_elsewhere(sys.exception(), code):
        print(f"patchtrain: error: {one_line(message, _LONGEST_MESSAGE)}", file=sys.stderr)
    return code


def _said_elsewhere(error: BaseException | None, code: int) -> bool:
    """Whether another process of the same run says it.

    ``told`` says so. Before the processes have met there is no ``told``: a usage error is then the
    same on all of a machine, and signals are sent to all.
    """
    told = getattr(error, "told", None)
    alike = code == 2 or code > 128
    return bool(told) if told is not None else alike and os.environ.get("LOCAL_RANK", "0") != "0"


if __name__ == "__main__":
    sys.exit(main())
