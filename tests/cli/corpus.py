"""A small English-like corpus with enough documents for a validation split."""

import random
from pathlib import Path

_WORDS = ["the", "cat", "dog", "bird", "sat", "ran", "sang", "on", "under", "over", "a", "mat"]


def write_corpus(file: Path, sentences: int = 8000, seed: int = 0) -> Path:
    """Write ``sentences`` random sentences, about 30 bytes each, to ``file``."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(_WORDS, k=rng.randint(4, 10))) + "." for _ in range(sentences))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
