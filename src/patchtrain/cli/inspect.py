"""Show what is in a patch: what patches of K tokens split, and whether their tokens fit together.

examples:
  patchtrain inspect stores/text
  patchtrain inspect stores/text --patch-sizes 4 --show 200 --page patches.html
  patchtrain inspect stores/text --model runs/small
  patchtrain inspect book.txt --tokenizer gpt2 --patch-sizes 2 8

A patch is K consecutive tokens, whatever stands in them. For K = 2 to 16 this says how many patches
end inside a word and how many hold parts of two sentences or documents, shows the text cut into
patches, and counts what tokens tell of each other by distance (mutual information). With --model
also how alike the embeddings of a patch's tokens are, against random ones.

Of a store, whole documents are drawn at random (always the same ones) until they hold
--max-tokens; of a text the first ones are read. docs/inspect.md says what the numbers mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli import results
from patchtrain.cli.parser import general, reading
from patchtrain.files import check_place

if TYPE_CHECKING:
    from patchtrain.analysis.patch_content import Text
    from patchtrain.evaluation.loading import LoadedModel

HELP = "show what is in a patch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="STORE|TEXT",
        help="a token store, or whatever `patchtrain prepare` reads",
    )
    parser.add_argument(
        "--patch-sizes",
        type=int,
        nargs="+",
        default=[2, 4, 8, 16],
        metavar="K",
        help="patch sizes to show (default: 2 4 8 16; the page's curves have 2 to 16)",
    )
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--model", metavar="RUN", help="a run or model folder, for its embeddings and tokenizer"
    )
    group.add_argument(
        "--tokenizer",
        metavar="X",
        help="for a text: hub name, folder, store or tokenizer.json (default: the model's)",
    )
    group.add_argument(
        "--split",
        choices=("train", "validation"),
        default="train",
        help="of a store (default: train)",
    )
    reading(group)
    group.add_argument(
        "--max-tokens",
        type=int,
        default=1_000_000,
        metavar="N",
        help="look at whole documents of about so many tokens (default: 1,000,000)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=64,
        metavar="N",
        help="tokens of the first document to show in patches (default: %(default)s; 0: none)",
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="write all of it as an HTML page")
    general(parser, json="all of it", quiet=True)


def run(args: argparse.Namespace) -> int:
    """Look and say.

    Raises:
        UsageError: no such source, no tokenizer, options that make no sense.
        PatchtrainError: a store or model that cannot be read.
    """
    import time

    _check(args)
    from patchtrain.analysis import inspection
    from patchtrain.analysis.patch_content import PATCH_SIZES, shown_patches

    begun = time.monotonic()
    if args.page:
        check_place(args.page, "the page")
    loaded = None
    if args.model:
        from patchtrain.evaluation.loading import load_model

        loaded = load_model(args.model)
    text, read = _read(args, loaded)
    sizes = sorted({*PATCH_SIZES, *args.patch_sizes})
    embeddings = inspection.token_embeddings(loaded.model) if loaded else None
    with results.progress(inspection.parts(sizes), "parts", quiet=args.quiet) as advance:
        found = inspection.inspect_text(text, sizes, embeddings, advance)
    found |= {"read": read, "model": args.model, **results.provenance(begun)}
    shown = {K: shown_patches(text, K, args.show) for K in args.patch_sizes if args.show}
    if args.json:
        results.show_json({**found, "shown": {str(K): texts for K, texts in shown.items()}})
    else:
        from patchtrain.report.inspect_terminal import print_patches

        print_patches(found, shown, args.patch_sizes)
    if args.page:
        from patchtrain.report.inspect_page import write_inspect_page

        title = f"What is in a patch of {', '.join(args.sources)}"
        page = write_inspect_page(found, shown, args.page, title)
        if not args.json:
            print(f"  page           {page}")
    return 0


def _check(args: argparse.Namespace) -> None:
    from patchtrain.errors import UsageError

    if min(args.patch_sizes) < 1:
        raise UsageError(f"--patch-sizes must be at least 1, not {min(args.patch_sizes)}")
    args.patch_sizes = list(dict.fromkeys(args.patch_sizes))
    if args.max_tokens < 2 * max(args.patch_sizes):
        raise UsageError(f"--max-tokens {args.max_tokens} is less than two patches: give more")
    if args.show < 0:
        raise UsageError(f"--show must be at least 0, not {args.show}")


def _read(args: argparse.Namespace, loaded: LoadedModel | None) -> tuple[Text, str]:
    """The text and where it is from."""
    from patchtrain.analysis import patch_content
    from patchtrain.data.store import TokenStore, is_store
    from patchtrain.errors import UsageError

    if any(is_store(Path(source)) for source in args.sources):
        if len(args.sources) > 1:
            raise UsageError("give one token store, or texts, not both")
        if args.tokenizer:
            raise UsageError("a token store has a tokenizer of its own: leave --tokenizer out")
        store = TokenStore.open(args.sources[0])
        tokenizer = store.load_tokenizer()
        _same_tokenizer(tokenizer, loaded, f"the token store {store.path}")
        split = store.split(args.split)
        text = patch_content.text_of_store(split, tokenizer, args.max_tokens)
        return text, f"of {len(split.tokens):,} in the {split.name} split of {store.path}"
    from patchtrain.data.sources import open_corpus

    corpus = open_corpus(args.sources, format=args.format, text_column=args.text_column)
    tokenizer = _text_tokenizer(args, loaded)
    texts = corpus.documents(cut=True)
    text = patch_content.text_of_texts(texts, tokenizer, args.max_tokens)
    return text, f"the first of {', '.join(args.sources)}"


def _text_tokenizer(args: argparse.Namespace, loaded: LoadedModel | None) -> Any:
    from patchtrain.data import tokenizer as tokenizers
    from patchtrain.errors import UsageError

    if args.tokenizer:
        tokenizer = tokenizers.load(args.tokenizer)
        _same_tokenizer(tokenizer, loaded, f"--tokenizer {args.tokenizer}")
        return tokenizer
    if loaded is None:
        raise UsageError(
            f"{args.sources[0]} is a text, no token store: say how to cut it into tokens, with "
            "--tokenizer X or --model RUN"
        )
    return tokenizers.load(loaded.path)


def _same_tokenizer(tokenizer: Any, loaded: LoadedModel | None, what: str) -> None:
    from patchtrain.errors import UsageError

    if loaded is not None and tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UsageError(
            f"{what} is not the tokenizer of the model in {loaded.path}: token ids mean "
            "something else there"
        )
