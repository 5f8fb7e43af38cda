"""Make a token store of token files that another tool has written, where they are.

examples:
  patchtrain link nanoGPT/data/openwebtext --tokenizer gpt2 --out stores/owt
  patchtrain link 'fineweb10B/*.bin' --tokenizer gpt2 --out stores/fineweb
  patchtrain link corpus_text_document --tokenizer Qwen/Qwen3-0.6B --out stores/corpus
  patchtrain link slimpajama/train --validation slimpajama/val --tokenizer checkpoints/llama \\
      --out stores/slimpajama
  patchtrain link tokenized/ --end-of-text 0 --out stores/unknown

Nothing is tokenised and nothing is copied: the store that is made points to the files, and
training reads them memory-mapped. They are read through once, to find the largest token id and the
documents, and are never changed. If one changes, what reads the store says so.

sources (several may be given, all of one format):
  nanoGPT      a flat .bin of uint16, or as --dtype says; llm.c's and modded-nanogpt's with a header
  Megatron     PREFIX, of PREFIX.bin and PREFIX.idx
  litdata      a folder with index.json, of flat tensors (TokensLoader); LitGPT's
  datatrove    a .ds, with its .ds.index; nanotron's
  a folder or a glob   every such file in it. Names with val or validation in them (val.bin) are
               for validation, names with test are left out

Name the tokenizer that the files were made with. It tells which token ends a document, goes into
the exported model, and measures the validation text, which bits per byte need. Where nobody
knows it any more, training and perplexity work without: --end-of-text ID then says what stands
between documents in files that do not mark them."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from patchtrain.cli.parser import general
from patchtrain.cli.prepare import print_next, print_splits, store_summary
from patchtrain.cli.results import show_json
from patchtrain.errors import one_line

if TYPE_CHECKING:
    from patchtrain.data.store import TokenStore

HELP = "make a token store of another tool's token files, in place"

_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")
_SHOWN_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="see below")
    parser.add_argument("--out", required=True, metavar="STORE", help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a store at --out")
    group = parser.add_argument_group("tokens")
    group.add_argument(
        "--tokenizer",
        metavar="X",
        help="the one the files were made with: Hugging Face name, folder, store or tokenizer.json",
    )
    group.add_argument(
        "--end-of-text",
        type=int,
        metavar="ID",
        help="the token between documents (default: the tokenizer's end-of-text token)",
    )
    group.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="entries of an unknown tokenizer (default: the largest id there is, plus one)",
    )
    group.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="type of the tokens, of files that do not say it (default: uint16)",
    )
    group = parser.add_argument_group("validation")
    group.add_argument(
        "--validation", nargs="+", default=[], metavar="SOURCE", help="files for validation"
    )
    group.add_argument(
        "--validation-fraction",
        type=float,
        metavar="F",
        help="else the share of the documents held out, chosen by a hash of their tokens "
        "(default: 0.02)",
    )
    general(parser, json="what is in the store and how it was made", quiet=True)


def run(args: argparse.Namespace) -> int:
    """Link, then say what came out and what to do next."""
    from patchtrain.data.linking import link

    began = time.monotonic()
    store = link(
        args.sources,
        args.out,
        tokenizer=args.tokenizer,
        end_of_text=args.end_of_text,
        vocab_size=args.vocab_size,
        validation=args.validation,
        validation_fraction=args.validation_fraction,
        dtype=args.dtype,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    if args.json:
        show_json(store_summary(store, args.out))
        return 0
    _show(store, time.monotonic() - began)
    print_next(store, args.out)
    return 0


def _show(store: TokenStore, seconds: float) -> None:
    made, linked = store.meta["made"], store.meta["linked"]
    print_splits(store)
    size = sum(file["bytes"] for file in linked) / 1e6
    files = "file" if len(linked) == 1 else "files"
    print(f"\nfiles      {len(linked):,} {files} of {made['format']}, {store.meta['dtype']} tokens")
    print(f"tokenizer  {_tokenizer(store)}; the largest token id is {made['largest_token']:,}")
    print(f"time       {seconds:.1f} s, {size / max(seconds, 1e-3):.1f} MB/s")
    if store.has_tokenizer:
        text = store.load_tokenizer().decode(store.train.tokens[:_SHOWN_TOKENS].tolist())
        print(f"begins     {one_line(text)!r}")
    for note in _notes(store):
        print(f"note       {note}")


def _tokenizer(store: TokenStore) -> str:
    if store.has_tokenizer:
        return f"{store.meta['tokenizer']['source']}: {store.vocab_size:,} entries"
    return f"unknown, taken to have {store.vocab_size:,} entries"


def _notes(store: TokenStore) -> list[str]:
    """What a user should know before training, where it is not as in a store of text."""
    notes, closed = [], store.meta["made"]["documents_closed"]
    documents = store.train.documents + store.validation.documents
    if not store.has_tokenizer and (named := store.meta["made"]["named_tokenizers"]):
        notes.append(f"the files name their tokenizer: --tokenizer {named[0]}")
    if not store.has_tokenizer:
        notes.append("without a tokenizer there are no bits per byte, samples or generated text")
    if store.eos_token_id is None:
        notes.append(
            "the end-of-text token is unknown: documents cannot be kept separate (--end-of-text ID)"
        )
    elif closed < documents:
        notes.append(
            f"{documents - closed:,} of {documents:,} documents do not end with the end-of-text "
            f"token {store.eos_token_id}; a model learns little from them about when to end"
        )
    if not len(store.validation.tokens):
        notes.append("nothing is held out, so no validation loss is measured")
    return notes
