r"""Talk to a tuned model, in the terminal or through a pipe.

examples:
  patchtrain chat runs/small-sft
  patchtrain chat runs/small-sft --system "Be brief." --temperature 0.7
  printf 'What is a cat?\nAnd a dog?\n' | patchtrain chat runs/small-sft --json

RUN is the run of a tuning, a run that was tuned (its tuning is found), or a model folder with a
chat template. Answers appear as they are written; Ctrl-C ends one. A line that ends in a backslash
goes on. In the terminal and in a pipe, where each line is a turn, these lines are commands:

  /reset        begin anew; the system prompt stays
  /system TEXT  another system prompt, from now on
  /save FILE    write the conversation as JSON, for sft --data
  /help         this list
  /exit         end, as Ctrl-D does

(// begins a line with a slash.) When the conversation outgrows the context the oldest turns are
left out, and you are told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patchtrain.cli import sampling as sampling_options
from patchtrain.cli.parser import general
from patchtrain.cli.results import show_json_line
from patchtrain.errors import PatchtrainError, UsageError

if TYPE_CHECKING:
    from patchtrain.evaluation.talk import Talk, Turn

HELP = "talk to a tuned model"

DEFAULT_NEW_TOKENS = 512
_COMMANDS = "/reset, /system TEXT, /save FILE, /help, /exit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt (default: none)")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"tokens of an answer (default: {DEFAULT_NEW_TOKENS}, at most half the context)",
    )
    sampling_options.add_arguments(parser)
    general(parser, json="each turn, an object a line,")


def run(args: argparse.Namespace) -> int:
    sampling_options.check(args)

    import torch

    from patchtrain import chat
    from patchtrain.evaluation.loading import load_model
    from patchtrain.evaluation.talk import Talk, find_tuned

    folder = find_tuned(args.run_folder)
    if folder != Path(args.run_folder):
        _tell(f"{folder} was tuned from it")
    loaded = load_model(folder)
    chat.use_template(loaded.tokenizer)
    new_tokens = sampling_options.new_tokens(args, loaded.context_length, DEFAULT_NEW_TOKENS)
    if loaded.context_length is not None and new_tokens >= loaded.context_length:
        raise UsageError(
            f"answers of {new_tokens} tokens leave no room for a question in the context of "
            f"{loaded.context_length}; give a smaller --max-new-tokens"
        )
    sampling = sampling_options.choose(args, loaded.model)
    torch.manual_seed(args.seed)
    talk = Talk(loaded, sampling, new_tokens, args.system)
    if sys.stdin.isatty():
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - importing it makes input() editable, with a history
        _tell(f"{folder}, a context of {loaded.context_length} tokens; {_COMMANDS}")
        _talk(talk, _ask_a_person, args.json, patient=True)
    else:
        _talk(talk, _read_line, args.json, patient=False)
    return 0


def _talk(talk: Talk, read: Callable[[], str | None], as_json: bool, patient: bool) -> None:
    """Turn by turn to the end of the input; ``patient`` with what cannot be done."""
    while (line := read()) is not None:
        if not line.strip():
            continue
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not _command(talk, line):
                    return
                continue
            _turn(talk, line[1:] if line.startswith("//") else line, as_json)
        except PatchtrainError as error:
            if not patient:
                raise
            _tell(str(error))


def _turn(talk: Talk, text: str, as_json: bool) -> None:
    def show(part: str) -> None:
        print(part, end="", flush=True)

    before = talk.forgotten
    turn = talk.ask(text, None if as_json else show)
    if as_json:
        show_json_line(turn.to_dict())
    else:
        print(flush=True)
    if note := _note(turn, before, talk):
        _tell(note)


def _note(turn: Turn, before: int, talk: Talk) -> str:
    notes = []
    if dropped := turn.forgotten - before:
        turns = "turn was" if dropped == 1 else f"{dropped} turns were"
        notes.append(
            f"the oldest {turns} left out: the conversation no longer fits the context of "
            f"{talk.loaded.context_length} tokens"
        )
    if turn.finish_reason == "length":
        notes.append(f"the answer was cut at {turn.tokens} tokens (--max-new-tokens)")
    return "; ".join(notes)


def _command(talk: Talk, line: str) -> bool:
    """Do what a line says; False if it ends the conversation."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/exit":
        return False
    if name == "/reset":
        talk.reset()
        _tell("the conversation begins anew")
    elif name == "/system":
        talk.system = rest or None
        _tell("another system prompt, from now on" if rest else "no system prompt, from now on")
    elif name == "/save":
        if not rest:
            raise UsageError("/save needs the name of a file: /save talk.jsonl")
        file = Path(rest).expanduser()
        if file.exists():
            raise UsageError(f"{file} exists; choose another name")
        talk.save(file)
        _tell(f"{len(talk.turns)} turns written to {file}")
    elif name == "/help":
        _tell(_COMMANDS)
    else:
        raise UsageError(f"no command {name}: {_COMMANDS} (// for a line that begins with /)")
    return True


def _ask_a_person() -> str | None:
    """A line as typed, also over several lines; None at its end."""
    line = ""
    prompt = "> "
    while True:
        try:
            line += input(prompt)
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:  # what was typed is dropped, as in a shell
            print(file=sys.stderr)
            return ""
        if not line.endswith("\\"):
            return line
        line, prompt = line[:-1] + "\n", ". "


def _read_line() -> str | None:
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _tell(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)
