"""The tokenizer of a store: one that exists, or one trained on the corpus itself.

A tokenizer trained here gives back every text exactly: ``decode(encode(text)) == text``. All four
kinds fall back to bytes, so nothing is unknown to them:

``bpe``      byte-level byte pair encoding, as in GPT-2
``unigram``  a unigram model over the same byte alphabet
``char``     the most frequent characters, other characters as their bytes
``byte``     the 256 bytes

``<|endoftext|>`` closes a document and serves as beginning-of-text and padding too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from patchtrain.data.hub import looks_like_path, quiet, reachable
from patchtrain.data.store import is_store
from patchtrain.data.store_record import MOST_IDS
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.model_folder import has_tokenizer

KINDS = ("bpe", "unigram", "char", "byte")
END_OF_TEXT = "<|endoftext|>"
BYTE_VOCAB = 256 + 1
DEFAULT_VOCAB_SIZE = {"bpe": 8192, "unigram": 8192, "char": 1024, "byte": BYTE_VOCAB}
MAX_VOCAB_SIZE = 1_000_000

# What the EOS token is called where a bare tokenizer.json does not say which of its tokens it is.
_EOS_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
)


def check_request(kind: str, vocab_size: int | None) -> int:
    """The vocabulary size to train ``kind`` with; ``UsageError`` where it makes no sense."""
    if kind not in KINDS:
        raise UsageError(f"no tokenizer kind '{kind}'; known: {', '.join(KINDS)}")
    size = DEFAULT_VOCAB_SIZE[kind] if vocab_size is None else vocab_size
    if kind == "byte" and size != BYTE_VOCAB:
        raise UsageError(
            f"a byte tokenizer always has {BYTE_VOCAB} entries (256 bytes and {END_OF_TEXT}); "
            "leave --vocab-size out"
        )
    if kind != "byte" and size <= BYTE_VOCAB:
        raise UsageError(
            f"--vocab-size {size} is too small for {kind}: 256 bytes and {END_OF_TEXT} take "
            f"{BYTE_VOCAB}; give more, such as {DEFAULT_VOCAB_SIZE[kind]}"
        )
    if size > MAX_VOCAB_SIZE:
        raise UsageError(f"--vocab-size {size} is too large; at most {MAX_VOCAB_SIZE} can be used")
    return size


def train(kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Any:
    """Train a tokenizer of ``kind`` on ``texts``; a ``PreTrainedTokenizerFast`` comes back.

    It has ``vocab_size`` entries, or fewer where the text does not give that many.
    """
    size = check_request(kind, vocab_size)
    build = {"bpe": _train_bpe, "unigram": _train_unigram, "char": _train_char, "byte": _make_byte}
    return _wrap(build[kind](iter(texts), size), eos_token=END_OF_TEXT)


def load(name: str | Path) -> Any:
    """The tokenizer at a ``tokenizer.json``, folder, token store or Hugging Face name.

    A ``PreTrainedTokenizerFast`` comes back, with truncation and padding off: a setting saved with
    a tokenizer must not cut documents. ``UsageError`` where it does not load or has no EOS token.
    """
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - leaves an unknown user alone
    if path.is_file():
        if (path.parent / "tokenizer_config.json").is_file() and path.name == "tokenizer.json":
            return _from_transformers(path.parent, str(name))
        return _from_file(path)
    if path.is_dir():
        return _from_transformers(path / "tokenizer" if is_store(path) else path, str(name))
    text = str(name)
    if looks_like_path(text):
        raise UsageError(f"no tokenizer at {text}: there is no such file or folder")
    return _from_transformers(text, text)


def encoder(tokenizer: Any) -> Any:
    """The ``tokenizers.Tokenizer`` behind ``tokenizer``, set to read special tokens as text.

    A document that mentions ``<|endoftext|>`` must not end there.
    """
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def _train_bpe(texts: Iterator[str], size: int) -> Any:
    from tokenizers import models, trainers

    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=_alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_unigram(texts: Iterator[str], size: int) -> Any:
    from tokenizers import models, trainers

    tokenizer = _byte_level(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        initial_alphabet=_alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except PatchtrainError:  # from reading the texts
        raise
    except Exception as error:  # the library raises bare exceptions
        raise PatchtrainError(
            f"the unigram tokenizer could not be trained ({one_line(error)}); "
            "give more text, a smaller --vocab-size, or --train-tokenizer bpe"
        ) from error
    return _complete_alphabet(tokenizer)


def _complete_alphabet(tokenizer: Any) -> Any:
    """The trained unigram model with every byte in it, and the same for the same text.

    The trainer drops bytes that longer pieces cover, sums in no fixed order, and gives the bytes it
    never saw scores in the order of a hash table. Rounded, with one score for all bytes that were
    not seen, and sorted, two trainings are equal.
    """
    from tokenizers import models

    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    scores = {piece: round(score, 6) for piece, score in vocab if piece != END_OF_TEXT}
    lowest = min(scores.values(), default=0.0)
    letters = _alphabet()
    # What was not seen stands at the bottom in steps of 0.0001, the trainer's filler.
    floor = lowest
    for score in sorted(scores[letter] for letter in letters if letter in scores):
        if score - floor > 1.5e-4:
            break
        floor = score
    unseen = {letter for letter in letters if scores.get(letter, lowest) <= floor}
    longer = sorted(
        (piece for piece in scores if piece not in letters),
        key=lambda piece: (-scores[piece], piece),
    )
    missing = sum(letter not in scores for letter in letters)
    # What is added takes the place of the rarest pieces: the size stays what was asked for.
    kept = longer[: max(0, len(longer) - missing)]
    entries = [(piece, scores[piece]) for piece in kept]
    entries += [(piece, lowest if piece in unseen else scores[piece]) for piece in letters]
    entries.sort(key=lambda entry: (-entry[1], entry[0]))
    done = _byte_level(models.Unigram([(END_OF_TEXT, 0.0), *entries], None, False))
    done.add_special_tokens([END_OF_TEXT])
    return done


def _train_char(texts: Iterator[str], size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    entries = [END_OF_TEXT, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {entry: i for i, entry in enumerate(entries + ranked[: size - BYTE_VOCAB])}
    # BPE without merges is one token a character, and a character it does not have is its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    # Short words keep the model's cache of words useful.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _make_byte(texts: Iterator[str], size: int) -> Any:
    from tokenizers import models

    vocab = {entry: i for i, entry in enumerate([END_OF_TEXT, *_alphabet()])}
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_level(model: Any) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _alphabet() -> list[str]:
    """The 256 printable letters that stand for bytes, in a fixed order."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _from_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise UsageError(f"{path} is not a usable tokenizer.json: {one_line(error)}") from error
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    eos = next((name for name in _EOS_NAMES if name in special), None)
    if eos is None:
        raise _no_eos(str(path))
    return _wrap(backend, eos_token=eos)


def _from_transformers(location: str | Path, name: str) -> Any:
    from transformers import AutoTokenizer

    if isinstance(location, Path):
        if not has_tokenizer(location):
            raise UsageError(f"no tokenizer in {location}: it has no tokenizer.json")
        local, failed = True, f"no usable tokenizer in {location}"
    elif reachable():
        local, failed = False, f"tokenizer '{name}' could not be had from the Hugging Face Hub"
    else:
        # Asking all the same, the library would retry for most of a minute.
        local, failed = (
            True,
            (
                f"tokenizer '{name}' is no file or folder here, the Hugging Face Hub cannot be "
                "reached, and there is no copy in the local cache"
            ),
        )
    try:
        with quiet():
            loaded = AutoTokenizer.from_pretrained(
                location, local_files_only=local, trust_remote_code=False
            )
    except Exception as error:  # anything from OSError to KeyError, and bare ones from Rust
        reason = "" if "reached" in failed else f": {one_line(error)}"
        raise UsageError(failed + reason) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"tokenizer '{name}' has no tokenizer.json (fast) form; convert it first")
    if loaded.eos_token is None:
        raise _no_eos(name)
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
    special = {key: str(token) for key in names if (token := getattr(loaded, key, None))}
    wrapped = _wrap(backend, **special)
    if getattr(loaded, "chat_template", None):
        wrapped.chat_template = loaded.chat_template
    return wrapped


def _wrap(backend: Any, eos_token: str, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    largest = max(backend.get_vocab().values(), default=0)
    if largest >= MOST_IDS:
        raise UsageError(
            f"the tokenizer has ids up to {largest:,}; at most {MOST_IDS - 1:,} can be used"
        )
    backend.no_truncation()
    backend.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos_token,
        # Cleaning up would drop the space before punctuation: decoded text must be the text.
        clean_up_tokenization_spaces=False,
        **{"bos_token": eos_token, "pad_token": eos_token, **special},
    )


def _no_eos(name: str) -> UsageError:
    return UsageError(
        f"tokenizer '{name}' has no end-of-text (EOS) token to close a document with; add one "
        "(add_special_tokens({'eos_token': '<|endoftext|>'})) and save it, or use "
        "--train-tokenizer bpe"
    )
