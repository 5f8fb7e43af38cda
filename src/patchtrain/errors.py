"""The errors a user can cause, each one clear line: what, where, and what to do.

The command line turns them into an exit code; the Python API raises them as they are.
"""

from typing import Any


class PatchtrainError(Exception):
    """Something failed while running (exit code 1): a full disk, a broken file, a NaN."""

    exit_code = 1


class UsageError(PatchtrainError, ValueError):
    """What was asked for cannot be done (exit code 2): a wrong flag, key, path or plan."""

    exit_code = 2


class NonfiniteError(PatchtrainError):
    """A loss, gradient or weight was no number any more, and the run stopped.

    The same run again would come to the same end. ``what`` happened is told without ``advice``.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what + advice)
        self.what = what


_SHORT_LIST = 30


def nearest(name: object, known: list[str]) -> str:
    """A ``; did you mean 'x'?`` for an unknown ``name``, or the list of known ones if short."""
    import difflib

    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if len(known) <= _SHORT_LIST else ""


def one_line(message: object, limit: int = 200) -> str:
    """A message, or what an exception says, on one line and not too long.

    What cannot be printed is escaped: a file's content must not steer the terminal.
    """
    text = " ".join(str(message).split()) or type(message).__name__
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def memory_ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, the machine's or a GPU's.

    torch has a class for a GPU's, told by its name so that torch need not be imported, and none for
    the machine's.
    """
    own = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return own or "DefaultCPUAllocator: can't allocate memory" in str(error)


def warning_line(message: object) -> str:
    """How a warning reads wherever it is said: on one line, with the name of who says it."""
    return f"patchtrain: warning: {one_line(message, 2000)}"


def first_problem(error: Any) -> str:
    """The first thing that pydantic's ``ValidationError`` finds wrong, in a few words."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{place} is missing"
    message = str(first["msg"])
    return f"{place} is {one_line(repr(first['input']), 40)}: {message[0].lower()}{message[1:]}"
