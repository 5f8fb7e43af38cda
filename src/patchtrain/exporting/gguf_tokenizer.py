"""A tokenizer as GGUF has it, and which ones can be written so.

GGUF holds the entries and merges of a byte-level BPE and, for how text is cut in words before, only
a name: llama.cpp has each known way in its own code. So the way a tokenizer cuts must be one of
them, exactly; anything else would be read as another tokenizer without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + _WORDS % "{1,3}"
_QWEN2 = _CONTRACTIONS + _WORDS % ""


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file. ``types`` are ``gguf.TokenType``, ``pre`` is llama.cpp's name."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    bos: int
    eos: int
    pad: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        """Put it into a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model("gpt2")  # what GGUF calls byte-level BPE
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def obstacles(tokenizer: Any) -> list[str]:
    """Why a tokenizer cannot be written, in words; empty if it can."""
    backend = _backend(tokenizer)
    if backend is None:
        return ["the tokenizer has no tokenizer.json"]
    model = backend["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "character" if model.get("byte_fallback") else str(model.get("type"))
        return [f"the tokenizer is {kind}, and only byte-level BPE is written"]
    found = []
    if _pre(backend) is None:
        found.append(
            "the tokenizer cuts text in words in a way that llama.cpp has no name for (known: "
            "that of gpt-2, llama-3, qwen2 and smollm)"
        )
    if not model.get("merges"):
        found.append("the tokenizer has no merges, which GGUF cannot say")
    if (backend.get("decoder") or {}).get("type") != "ByteLevel":
        found.append("the tokenizer's decoder is not byte-level")
    if tokenizer.eos_token_id is None:
        found.append("the tokenizer has no EOS token")
    return found


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer without ``obstacles``, filled up to the ``rows`` of embeddings.

    Raises:
        ValueError: it has more entries than there are rows.
    """
    import gguf

    backend = _backend(tokenizer)
    assert backend is not None
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= rows:
        raise ValueError(f"the tokenizer has ids up to {max(by_id)}, the model only {rows} rows")
    added = {entry["id"]: entry["special"] for entry in backend["added_tokens"]}
    tokens, types = [], []
    for number in range(rows):
        if number not in by_id:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            special = added[number]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        else:
            kind = gguf.TokenType.NORMAL
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(int(kind))
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]
    ]
    pre = _pre(backend)
    assert pre is not None
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    ids = tokenizer("a")["input_ids"]
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=merges,
        pre=pre,
        bos=eos if bos is None else bos,  # unsaid, llama.cpp takes token 11
        eos=eos,
        pad=tokenizer.pad_token_id,
        add_bos=bool(ids) and bos is not None and ids[0] == bos,
        add_eos=bool(ids) and ids[-1] == eos,
        chat_template=tokenizer.chat_template,
    )


def _backend(tokenizer: Any) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())


def _pre(backend: dict[str, Any]) -> str | None:
    """llama.cpp's name of how text is cut in words, or None."""
    pre = backend.get("pre_tokenizer") or {}
    parts = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    last = parts[-1] if parts else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    own, before = last.get("use_regex", True), parts[:-1]
    normal, ignores = backend.get("normalizer"), bool(backend["model"].get("ignore_merges"))
    if own and not before:
        name = "gpt-2"
    elif own and before == [{"type": "Digits", "individual_digits": True}]:
        name = "smollm"
    elif not own and len(before) == 1 and before[0].get("type") == "Split":
        split = before[0]
        if split.get("behavior") != "Isolated" or split.get("invert"):
            return None
        name = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}.get(split["pattern"].get("Regex"), "")
    else:
        return None
    # llama.cpp puts no text in a normal form; that of Qwen2 changes little, and is left out there
    # too. Only its llama-3 takes a whole word that is an entry without merging it.
    if normal is not None and not (name == "qwen2" and normal == {"type": "NFC"}):
        return None
    return name if name and ignores == (name == "llama-bpe") else None
