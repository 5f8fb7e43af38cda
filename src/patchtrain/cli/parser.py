"""The parser of all commands: one form of help, one style of error, near misses named.

The help of a command is its docstring: a sentence, then ``examples:`` that run as they stand
(``tests/cli/test_help.py`` sees to it), then what else is worth knowing, which comes below the
options. What all commands share is added by ``general``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from patchtrain.errors import UsageError, nearest

EXAMPLES = "examples:"


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``UsageError`` and takes its help from a docstring."""

    def __init__(self, *, doc: str = "", **kwargs: Any) -> None:
        lead, notes = split_doc(doc)
        super().__init__(
            description=lead,
            epilog=notes,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # what is short for one option today is ambiguous tomorrow
            **kwargs,
        )
        self._positionals.title = "arguments"
        # So that a value of -1e-3 is refused as one, not as an option that is not there.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")

    def format_help(self) -> str:
        # All options on one line of usage would be many lines.
        needed = [
            action for action in self._actions if action.required or not action.option_strings
        ]
        formatter = argparse.HelpFormatter(self.prog)
        formatter.add_usage(None, needed, [], prefix="")
        line = " ".join(formatter.format_help().split())
        self.usage = f"{line.replace('%', '%%')} [options]"
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Say of words that nothing takes what may be meant."""
        options = [word.partition("=")[0] for word in words if word.startswith("-")]
        if not options:
            self.error(f"unexpected '{words[0]}'")
        self.error(f"no option {options[0]}{nearest(options[0], option_names(self))}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse would list all there are, in other words and quotes in each version of Python.
        if action.choices is None or value in action.choices:
            return
        known = nearest(value, [str(choice) for choice in action.choices])
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"no {str(action.metavar).lower()} '{value}'{known}")
        name = "/".join(action.option_strings) or action.metavar or action.dest
        self.error(f"{name} cannot be '{value}'{known}")


def split_doc(doc: str) -> tuple[str, str]:
    """A docstring as what comes before the options (to the end of its examples), and after."""
    paragraphs = doc.strip().split("\n\n")
    ends = [n for n, text in enumerate(paragraphs, 1) if text.startswith(EXAMPLES)]
    end = ends[0] if ends else len(paragraphs)
    return "\n\n".join(paragraphs[:end]), "\n\n".join(paragraphs[end:])


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """``--like-this``, in the order of the help."""
    return [name for action in parser._actions for name in action.option_strings
            if name.startswith("--")]  # fmt: skip


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of a tree that run something: of commands, and of what they divide into."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in inner:
        for child in action.choices.values():
            yield from leaves(child)
    if not inner:
        yield parser


def reading(group: argparse._ActionsContainer) -> None:
    """How files of text are read, in the commands that read some."""
    group.add_argument(
        "--text-column",
        default="text",
        metavar="NAME",
        help="column with the text, in JSON lines, Parquet and datasets (default: %(default)s)",
    )
    group.add_argument(
        "--format",
        choices=("text", "jsonl", "parquet"),
        help="how files are read (default: by their names)",
    )


def at_least_one(args: argparse.Namespace, *names: str) -> None:
    """``UsageError`` where one of the options ``names`` is given, and below 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def general(
    parser: argparse.ArgumentParser, *, json: str | None = None, quiet: bool = False
) -> None:
    """The options that mean the same in all commands.

    Args:
        parser: of a command, its own options added.
        json: what ``--json`` prints, in words; None where a program has nothing to read.
        quiet: whether there is progress to leave out.
    """
    group = parser.add_argument_group("general")
    if json is not None:
        group.add_argument(
            "--json", action="store_true", help=f"print {json} as JSON, and nothing else, on stdout"
        )
    if quiet:
        group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(parser=parser)
