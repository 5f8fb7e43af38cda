"""Turn a corpus into a token store: tokenised once, read by every run.

examples:
  patchtrain prepare book.txt --out store
  patchtrain prepare corpus/ --out store --train-tokenizer bpe --vocab-size 8192
  patchtrain prepare 'shards/*.jsonl.zst' --out store --tokenizer HuggingFaceTB/SmolLM2-135M
  patchtrain prepare corpus/ --out store --tokenizer gpt2 --executor local --workers 16
  patchtrain prepare corpus/ --out store --tokenizer gpt2 --executor slurm --workers 200 \\
      --executor-option partition=cpu --executor-option time=02:00:00
  zcat pages.jsonl.gz | patchtrain prepare - --format jsonl --text-column body --out store

sources (several can be mixed):
  a file          text (.txt .md .py ...), JSON lines (.jsonl .json) or Parquet (.parquet),
                  each also with .gz, .xz or .zst
  a folder        every such file in it; hidden files are left out
  a glob          'books/*.txt'
  -               standard input, with --format text or jsonl
  hf:owner/name   a Hugging Face dataset, streamed (hf:owner/name:config for a configuration)
  stdlib          the Python standard library's own sources, about 12 MB, on every machine

One text file is one document; a longer one than 16,384 characters is cut at line ends into several.
--document-separator says what stands between documents instead. Documents of any format longer
than 262,144 characters are cut too. The store records how many were.

Without --tokenizer one is trained on the corpus: bpe with 8192 entries.

A large corpus can be tokenised by many workers: --executor local on this machine, slurm or ray on
a cluster. The files are cut into shards, each is tokenised into a folder in STORE.parts, and these
are merged in order; the store is the same, byte for byte, whoever made it. A command that failed
or was killed goes on, when called again, with the parts that are there. Slurm takes sbatch's own
options, and `setup`, a command to run first on each node; the command waits for its jobs, and all
machines must see the sources and STORE.parts under the same paths."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from patchtrain.cli.parser import general, reading

if TYPE_CHECKING:
    from patchtrain.data.store import TokenStore

HELP = "turn a corpus into a token store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="see below")
    parser.add_argument("--out", required=True, metavar="STORE", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a store at --out")
    group = parser.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer", metavar="X", help="Hugging Face name, folder, store or tokenizer.json"
    )
    group.add_argument(
        "--train-tokenizer",
        metavar="KIND",
        help="train one on the corpus: bpe, unigram, char or byte (default: bpe)",
    )
    group.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="entries of the trained tokenizer (default: 8192; char 1024; byte is always 257)",
    )
    group = parser.add_argument_group("reading")
    reading(group)
    group.add_argument(
        "--split", default="train", metavar="NAME", help="split of a dataset (default: train)"
    )
    group.add_argument(
        "--document-separator",
        metavar="TEXT",
        help=r"what stands between documents in a text file; \n and \t are understood",
    )
    group.add_argument(
        "--validation-fraction",
        type=float,
        default=0.02,
        metavar="F",
        help="share of the documents held out, chosen by a hash of their text (default: 0.02)",
    )
    group = parser.add_argument_group("many workers (pip install 'patchtrain[cluster]')")
    group.add_argument("--executor", metavar="E", help="tokenise in shards: local, slurm or ray")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="at most so many at once (default: one a core; on a cluster as many as it gives)",
    )
    group.add_argument(
        "--tasks",
        type=int,
        metavar="M",
        help="at most so many shards (default: 1000, and none below 16 MB)",
    )
    group.add_argument(
        "--executor-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch without its dashes, or setup=COMMAND; may be given again",
    )
    general(parser, json="what is in the store and how it was made", quiet=True)


def run(args: argparse.Namespace) -> int:
    """Prepare, then say what came out and what to do next."""
    from patchtrain.cli.results import show_json
    from patchtrain.data.documents import added_share
    from patchtrain.data.prepare import prepare
    from patchtrain.errors import UsageError

    for option in args.executor_option:
        if not option.partition("=")[1]:
            raise UsageError(f"--executor-option {option}: write KEY=VALUE, as in partition=cpu")
    separator = args.document_separator
    if separator is not None:
        for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ("\\f", "\f")):
            separator = separator.replace(written, meant)
    store = prepare(
        args.sources,
        args.out,
        tokenizer=args.tokenizer,
        train_tokenizer=args.train_tokenizer,
        vocab_size=args.vocab_size,
        validation_fraction=args.validation_fraction,
        format=args.format,
        text_column=args.text_column,
        split=args.split,
        document_separator=separator,
        executor=args.executor,
        workers=args.workers,
        tasks=args.tasks,
        executor_options=dict(option.split("=", 1) for option in args.executor_option),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if args.json:
        show_json(store_summary(store, args.out))
        return 0
    made, tokenizer = store.meta["made"], store.meta["tokenizer"]
    print_splits(store)
    size = (store.train.utf8_bytes + store.validation.utf8_bytes) / 1e6
    seconds = max(made["seconds"], 1e-3)
    origin = (
        f"{tokenizer['trained']}, trained here" if "trained" in tokenizer else tokenizer["source"]
    )
    print(f"\ntokenizer  {origin}: {store.vocab_size:,} entries, {store.meta['dtype']} tokens")
    print(f"time       {seconds:.1f} s, {size / seconds:.1f} MB/s")
    if store.train.documents:
        shares = ", ".join(
            f"{added_share(store.train.offsets, K):.1%} at K = {K}" for K in (2, 4, 8)
        )
        print(f"documents  kept separate, padding and start tokens would be {shares}")
    for key, note in _NOTES.items():
        if made[key]:
            print(f"note       {made[key]:,} {note}")
    print_next(store, args.out)
    return 0


def print_splits(store: TokenStore) -> None:
    """The table of a store's splits; ``-`` where the size of the text is not known."""
    print(f"{'split':<12}{'documents':>14}{'tokens':>18}{'bytes':>18}{'bytes per token':>18}")
    for part in (store.train, store.validation):
        tokens, size = len(part.tokens), part.utf8_bytes
        shown = "-" if tokens and not size else f"{size:,}"
        per_token = f"{size / tokens:.2f}" if size else "-"
        print(f"{part.name:<12}{part.documents:>14,}{tokens:>18,}{shown:>18}{per_token:>18}")


# Training tokens that recipes/small.yaml needs, or it would read them more often than it allows.
SMALL_NEEDS = 2_920_000


def print_next(store: TokenStore, out: str) -> None:
    """Where the store is, and what trains on it."""
    print(f"store      {out}")
    # All that there is, as often as the recipe allows.
    less = " plan.steps=null plan.epochs=8" if len(store.train.tokens) < SMALL_NEEDS else ""
    print(f"next       patchtrain train recipes/small.yaml store={out}{less}")


def store_summary(store: TokenStore, out: str) -> dict[str, Any]:
    """The store's record, and the sizes of its splits."""
    sizes = {
        part.name: {
            "documents": part.documents,
            "tokens": len(part.tokens),
            "utf8_bytes": part.utf8_bytes,
        }
        for part in (store.train, store.validation)
    }
    return {
        "store": out,
        "splits": sizes,
        "vocab_size": store.vocab_size,
        **{name: store.meta[name] for name in ("dtype", "tokenizer", "made")},
    }


_NOTES = {
    "documents_cut": "long documents were cut into several",
    "blank_documents": "blank documents were left out",
    "files_not_utf8": "files that are not UTF-8 were left out",
    "unknown_tokens": "tokens are unknown to the tokenizer: this text gets lost",
}
