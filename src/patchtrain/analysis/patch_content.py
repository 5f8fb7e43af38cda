"""What patches hold: which words, sentences and documents their borders lie in.

A patch is K consecutive tokens of the training stream, whatever stands in them. Here the borders of
tokens are put beside the text they came from, so that it can be said of each patch whether it ends
inside a word, or holds parts of two sentences or of two documents.

* Where a token stands in its text is what the tokenizer says (offsets, in characters), whichever
  kind it is: a document of a store is decoded and encoded again, and counts only if the very same
  tokens come back.
* A *word* is a longest run of letters, digits, marks and ``_``; one apostrophe between two such
  characters belongs to it. Scripts without spaces make long words.
* A *sentence* ends after ``.``, ``!``, ``?`` or the like, with the quotes and brackets that close
  behind it, where white space and then no small letter follows (after an ideographic full stop
  nothing has to follow); not after a single letter with a dot, an initial. A blank line and the end
  of a document end one too. There is no list of abbreviations: after "Dr. " a sentence ends.
* A token belongs to the sentence and the document its first character is in; the end-of-text token
  to the document it closes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from patchtrain.errors import PatchtrainError, UsageError

PATCH_SIZES = tuple(range(2, 17))
_DOCUMENTS_AT_A_TIME = 256
_APOSTROPHES = "'\N{RIGHT SINGLE QUOTATION MARK}"
_CLOSERS = "\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}»)\\]"
_ENDS = re.compile(rf"([.!?…।]+)[{_CLOSERS}]*(?=\s+(\S))|[。！？]+[」』）{_CLOSERS}]*")  # noqa: RUF001
_BLANK = re.compile(r"\n\s*")


@dataclass(frozen=True)
class Text:
    """Tokens in order, with what they are parts of.

    ``tokens``, ``document`` and ``sentence``: ``(N,)`` int64, the last two numbered from 0 over all
    of the text. ``words``: ``(W, 2)`` int64, the first and the last token of each word, ascending.
    ``end_token`` closes documents. ``opening`` is the first document's text, ``opening_ends`` where
    in it each of its tokens ends, in characters. ``left_out`` counts the documents that the
    tokenizer did not give back.
    """

    tokens: np.ndarray
    document: np.ndarray
    sentence: np.ndarray
    words: np.ndarray
    end_token: int | None = None
    opening: str = ""
    opening_ends: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def documents(self) -> int:
        return int(self.document[-1]) + 1 if len(self) else 0

    @property
    def in_word(self) -> np.ndarray:
        """``(N,)`` bool: whether the border after a token lies inside a word."""
        steps = np.zeros(len(self) + 1, dtype=np.int64)
        np.add.at(steps, self.words[:, 0], 1)
        np.add.at(steps, self.words[:, 1], -1)
        inside: np.ndarray = np.cumsum(steps)[:-1] > 0
        return inside


@dataclass(frozen=True)
class PatchShares:
    """What patches of one size do to the text; shares are in [0, 1].

    ``end_in_word``: patches whose end lies inside a word. ``words_cut``: words of which two patches
    hold a part. ``two_sentences``, ``two_documents``: patches that hold tokens of two or more.
    ``words_per_patch``: words to a patch, on average.
    """

    patch_size: int
    patches: int
    end_in_word: float
    words_cut: float
    two_sentences: float
    two_documents: float
    words_per_patch: float


def patch_shares(text: Text, patch_size: int) -> PatchShares:
    """Cut ``text`` into patches from its first token on and count; what is left over is not read.

    ``UsageError``: fewer tokens than one patch.
    """
    K, patches = patch_size, len(text) // patch_size
    if patches == 0:
        raise UsageError(f"{len(text)} tokens are less than one patch of {K}")
    firsts, lasts = slice(0, patches * K, K), slice(K - 1, patches * K, K)
    words = text.words[text.words[:, 1] < patches * K]
    cut = words[:, 0] // K != words[:, 1] // K
    return PatchShares(
        patch_size=K,
        patches=patches,
        end_in_word=float(text.in_word[lasts].mean()),
        words_cut=float(cut.mean()) if len(words) else 0.0,
        two_sentences=float((text.sentence[firsts] != text.sentence[lasts]).mean()),
        two_documents=float((text.document[firsts] != text.document[lasts]).mean()),
        words_per_patch=len(words) / patches,
    )


def shown_patches(text: Text, patch_size: int, tokens: int) -> list[str]:
    """The first ``tokens`` tokens of the first document as the texts of its patches.

    A character whose bytes two patches share stands in the first of them.
    """
    ends = text.opening_ends[:tokens]
    cuts = [0, *ends[patch_size - 1 :: patch_size].tolist()]
    if len(ends) % patch_size:
        cuts.append(int(ends[-1]))
    return [text.opening[begin:end] for begin, end in pairwise(cuts)]


def text_of_store(split: Any, tokenizer: Any, max_tokens: int) -> Text:
    """Whole documents of a store's split, drawn at random, until they hold ``max_tokens`` tokens.

    They stay in the order of the store, each with its end-of-text token. All are taken if there are
    no more. Raises as ``text_of_documents``; ``UsageError`` if the split is empty.
    """
    from patchtrain.data.batches import Permutation

    if split.documents == 0:
        raise UsageError(f"there is no text in the {split.name} split of the token store")
    order, chosen, found = Permutation(split.documents, 0), [], 0
    for number in range(split.documents):
        document = int(order(np.array([number]))[0])
        chosen.append(document)
        found += int(split.offsets[document + 1] - split.offsets[document])
        if found >= max_tokens:
            break
    documents = [
        np.asarray(split.tokens[split.offsets[i] : split.offsets[i + 1]]) for i in sorted(chosen)
    ]
    return text_of_documents(documents, tokenizer)


def text_of_documents(documents: Sequence[np.ndarray], tokenizer: Any) -> Text:
    """The text behind documents of token ids, ``(n,)`` each, that may end with end-of-text tokens.

    ``tokenizer``: a ``PreTrainedTokenizerFast``. ``PatchtrainError``: it gives back none of them.
    """
    from patchtrain.data.tokenizer import encoder

    backend, eos = encoder(tokenizer), tokenizer.eos_token_id
    builder = _Builder(eos)
    for begin in range(0, len(documents), _DOCUMENTS_AT_A_TIME):
        part = [ids.tolist() for ids in documents[begin : begin + _DOCUMENTS_AT_A_TIME]]
        closed = [bool(ids) and ids[-1] == eos for ids in part]
        bare = [ids[:-1] if end else ids for ids, end in zip(part, closed, strict=True)]
        texts = backend.decode_batch(bare, skip_special_tokens=False)
        encoded = backend.encode_batch(texts, add_special_tokens=False)
        for ids, known, text, found in zip(part, bare, texts, encoded, strict=True):
            if found.ids == known:
                builder.add(ids, text, found.offsets)
            else:
                builder.left_out += 1
    if documents and not builder.documents:
        raise PatchtrainError(
            f"decoded and encoded again, none of {len(documents):,} documents gives the same "
            "tokens: with this tokenizer it cannot be said where a token stands in the text"
        )
    return builder.text()


def text_of_texts(texts: Iterable[str], tokenizer: Any, max_tokens: int) -> Text:
    """The first documents among ``texts``, until they hold ``max_tokens`` tokens.

    Each ends with the end-of-text token, as in a store. ``UsageError``: there is no text.
    """
    from patchtrain.data.tokenizer import encoder

    backend, eos = encoder(tokenizer), tokenizer.eos_token_id
    builder = _Builder(eos)
    for text in texts:
        found = backend.encode(text, add_special_tokens=False)
        builder.add([*found.ids, eos], text, found.offsets)
        if builder.length >= max_tokens:
            break
    if not builder.documents:
        raise UsageError("there is no text to look into: every document is empty")
    return builder.text()


class _Builder:
    """Documents end to end."""

    def __init__(self, end_token: int | None) -> None:
        self.end_token = end_token
        self.length = self.documents = self.sentences = self.left_out = 0
        self._parts: dict[str, list[np.ndarray]] = {
            name: [] for name in ("tokens", "document", "sentence", "words")
        }
        self._opening: tuple[str, np.ndarray] = ("", np.zeros(0, dtype=np.int64))

    def add(self, ids: list[int], text: str, offsets: Sequence[tuple[int, int]]) -> None:
        """A document; ``offsets`` lack an entry for the token that closes it, if one does."""
        if not ids:
            return
        spans = np.array([*offsets, *[(len(text), len(text))] * (len(ids) - len(offsets))])
        starts, ends = spans[:, 0].astype(np.int64), spans[:, 1].astype(np.int64)
        sentence = np.searchsorted(sentence_ends(text), starts, side="right")
        sentence[len(offsets) :] = sentence[len(offsets) - 1] if len(offsets) else 0
        words = token_spans(word_spans(text), starts[: len(offsets)], ends[: len(offsets)])
        for name, values in (
            ("tokens", np.asarray(ids, dtype=np.int64)),
            ("document", np.full(len(ids), self.documents)),
            ("sentence", sentence + self.sentences),
            ("words", words + self.length),
        ):
            self._parts[name].append(values)
        if self.documents == 0:
            self._opening = (text, ends)
        self.length += len(ids)
        self.documents += 1
        self.sentences += int(sentence[-1]) + 1

    def text(self) -> Text:
        empty = {"words": np.zeros((0, 2), dtype=np.int64)}
        arrays = {
            name: np.concatenate(parts) if parts else empty.get(name, np.zeros(0, dtype=np.int64))
            for name, parts in self._parts.items()
        }
        opening, ends = self._opening
        return Text(**arrays, end_token=self.end_token, opening=opening, opening_ends=ends,
                    left_out=self.left_out)  # fmt: skip


def token_spans(spans: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The first and the last token that hold something of each span of characters, ``(n, 2)``.

    ``starts``, ``ends``: ``(N,)``, the characters of each token, ascending; tokens that hold bytes
    of one character all stand at it.
    """
    if len(starts) == 0:
        return np.zeros((0, 2), dtype=np.int64)
    first = np.searchsorted(ends, spans[:, 0], side="right")
    last = np.searchsorted(starts, spans[:, 1], side="left") - 1
    return np.stack([first, np.maximum(first, last)], axis=1)


def word_spans(text: str) -> np.ndarray:
    """``(n, 2)`` int64: where each word of ``text`` begins and ends, in characters."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds, places = np.unique(codes, return_inverse=True)
    table = np.array([_is_word(chr(code)) for code in kinds], dtype=bool)
    inside = table[places] if len(codes) else np.zeros(0, dtype=bool)
    joins = np.isin(codes[1:-1], [ord(char) for char in _APOSTROPHES])
    joins &= inside[:-2] & inside[2:]
    inside[1:-1] |= joins
    steps = np.diff(inside.astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)], axis=1)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")


def sentence_ends(text: str) -> np.ndarray:
    """``(n,)`` int64, ascending: the characters behind which sentences of ``text`` end.

    The end of the text is not among them.
    """
    ends = set()
    for found in _ENDS.finditer(text):
        mark, following = found.groups()
        if mark is not None and (following.islower() or _is_initial(text, found.start(), mark)):
            continue
        ends.add(found.end())
    for found in _BLANK.finditer(text):
        if found.group().count("\n") > 1:
            end = found.start()
            while end and text[end - 1].isspace():
                end -= 1
            ends.add(end)
    return np.array(sorted(ends - {0, len(text)}), dtype=np.int64)


def _is_initial(text: str, place: int, mark: str) -> bool:
    """Whether the dot at ``place`` stands behind a letter that stands alone."""
    alone = place < 2 or not _is_word(text[place - 2])
    return mark == "." and place > 0 and text[place - 1].isalpha() and alone
