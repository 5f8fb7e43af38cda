"""A talk with a tuned model: what was said, what of it still fits, the next answer.

The model reads all of the conversation again for each answer, in its own chat template. When that
no longer fits its context, the oldest turns are left out, question and answer together, and the
answer says how many; a system prompt always stays.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from patchtrain import chat
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.generate import (
    Sampling,
    Streamed,
    before_stop,
    completion,
    continue_rows,
)
from patchtrain.evaluation.loading import LoadedModel, find_model
from patchtrain.files import write_text
from patchtrain.runs import RunFolder, pretrained_name

# A small model that does not end its answer goes on with the question it expects next.
_PLAIN_STOP = "\n\n### User:"


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    ``prompt_tokens``: what the model read. ``finish_reason``: ``"stop"``, ``"length"`` or
    ``"interrupted"``. ``forgotten``: earlier turns that the model no longer read.
    """

    user: str
    assistant: str
    prompt_tokens: int
    tokens: int
    finish_reason: str
    forgotten: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Talk:
    """The conversation so far with a model whose tokenizer has a chat template."""

    loaded: LoadedModel
    sampling: Sampling
    max_new_tokens: int
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0
    """How many of the oldest turns the model no longer reads."""

    def __post_init__(self) -> None:
        if self.loaded.tokenizer.chat_template == chat.PLAIN_TEMPLATE:
            stop = (*self.sampling.stop, _PLAIN_STOP)
            self.sampling = Sampling(**{**asdict(self.sampling), "stop": stop})

    def messages(self, first: int = 0) -> chat.Messages:
        """The system prompt and the turns from ``first`` on, as messages."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns[first:]:
            found.append({"role": "user", "content": turn.user})
            found.append({"role": "assistant", "content": turn.assistant})
        return found

    def ask(self, text: str, show: Callable[[str], None] | None = None) -> Turn:
        """The model's answer, which becomes part of the conversation; shown as it is written.

        Ctrl-C ends the answer, and what was written of it stays.

        Raises:
            UsageError: the question does not fit the context, even with nothing before it.
            PatchtrainError: the chat template refuses it.
        """
        tokenizer, said = self.loaded.tokenizer, []
        first, ids = self._fitting(text)

        def hear(part: str) -> None:
            said.append(part)
            if show:
                show(part)

        ends = chat.stop_ids(self.loaded.model, tokenizer)
        begun = time.perf_counter()
        try:
            (new,) = continue_rows(
                self.loaded.model, tokenizer, [ids], self.max_new_tokens, self.sampling, ends,
                streamer=Streamed(tokenizer, hear, stop=self.sampling.stop),
            )  # fmt: skip
            found = completion(tokenizer, ids, new, self.sampling, ends)
            answer, tokens, reason = found.text, found.tokens, found.finish_reason
        except KeyboardInterrupt:
            answer = before_stop("".join(said), self.sampling.stop)
            tokens, reason = len(chat.encode(tokenizer, answer)), "interrupted"
        seconds = time.perf_counter() - begun
        self.forgotten = first
        turn = Turn(text, answer.strip(), len(ids), tokens, reason, first, round(seconds, 3))
        self.turns.append(turn)
        return turn

    def _fitting(self, text: str) -> tuple[int, list[int]]:
        """The first turn that still fits with the question and an answer, and all token ids."""
        context, question = self.loaded.context_length, [{"role": "user", "content": text}]
        ids: list[int] = []
        for first in range(self.forgotten, len(self.turns) + 1):
            whole = chat.render(
                self.loaded.tokenizer, self.messages(first) + question, "this conversation", True
            )
            ids = chat.encode(self.loaded.tokenizer, whole)
            if context is None or len(ids) + self.max_new_tokens <= context:
                return first, ids
        assert context is not None
        system = " and the system prompt" if self.system is not None else ""
        raise UsageError(
            f"the question{system} take {len(ids)} tokens, and a context of {context} with an "
            f"answer of {self.max_new_tokens} leaves {max(0, context - self.max_new_tokens)}: "
            f"say it shorter, or give a smaller --max-new-tokens"
        )

    def reset(self) -> None:
        """Forget all that was said; the system prompt stays."""
        self.turns.clear()
        self.forgotten = 0

    def save(self, file: Path) -> None:
        """Write the whole conversation as one line of JSON, which ``sft --data`` reads."""
        line = json.dumps({"messages": self.messages()}, ensure_ascii=False)
        try:
            write_text(file, line + "\n")
        except OSError as error:
            raise PatchtrainError(f"cannot write {file}: {error.strerror}") from error


def find_tuned(path: str | Path) -> Path:
    """The tuned model behind ``path``: itself, or the one tuning of the run that is there.

    A tuning of a run is looked for in the run's folder and beside it. A model folder is taken as it
    is where it has a chat template.

    Raises:
        UsageError: nothing there was tuned to answer, or several things were; what to do instead.
    """
    path = Path(path)
    folder, run = find_model(path)
    if run is None or run.part("tuning") or _pretrained(run):
        if run is None or not run.part("tuning"):
            _check_template(folder, path)
        return path
    tuned = _tunings(run)
    if len(tuned) == 1:
        return tuned[0]
    if tuned:
        names = ", ".join(str(found) for found in tuned)
        raise UsageError(f"{path} was tuned more than once; name one of {names}")
    raise UsageError(
        f"{path} was only pretrained, so it continues text and does not answer: use "
        f"`patchtrain generate {path}`, or tune it with `patchtrain sft {path} --data FILE`"
    )


def _pretrained(run: RunFolder) -> bool:
    """Whether a run went on from another model, which may have been tuned."""
    try:
        return pretrained_name(run.recipe_file.read_text(encoding="utf-8")) is not None
    except (OSError, UnicodeError):
        return False


def _check_template(folder: Path, path: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # loading the model says what is wrong with it
        return
    if not tokenizer.chat_template:
        raise UsageError(
            f"the model in {path} has no chat template, so it was not tuned to answer: use "
            f"`patchtrain generate {path}`, or tune it with `patchtrain sft {path} --data FILE`"
        )


def _tunings(run: RunFolder) -> list[Path]:
    """The finished tunings of a run's model, in its folder and beside it."""
    named = run.path.name not in ("", "..")
    beside = run.path.parent if named else run.path.resolve().parent
    found = []
    for folder in (*sorted(run.path.iterdir()), *sorted(beside.iterdir())):
        try:
            whole = (folder / "run.json").is_file() and (folder / "model/config.json").is_file()
            tuned_from = RunFolder(folder).part("tuning").get("from") if whole else None
        except (OSError, PatchtrainError):
            continue  # somebody else's, closed or broken
        if isinstance(tuned_from, str) and Path(tuned_from).resolve() == run.model.resolve():
            found.append(folder)
    return found
