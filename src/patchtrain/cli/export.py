"""Write the model for other programs, or find out which of them take it.

examples:
  patchtrain export runs/small --to gguf
  patchtrain export runs/small --to gguf --dtype q8_0 --out small.gguf
  patchtrain export runs/small --to hf --dtype bf16 --out small-bf16
  patchtrain export runs/small --check

RUN/model is a plain Hugging Face folder already: transformers and vLLM open it as it is. GGUF, for
llama.cpp and what is built on it, is one file.

--check loads the model in transformers, writes it as GGUF, reads that back and compares the two,
runs llama.cpp on it where it is installed, and goes over what vLLM reads. It says who takes the
model and why not; the exit code is 1 where somebody does not."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from patchtrain.cli import results
from patchtrain.cli.parser import general
from patchtrain.errors import UsageError

if TYPE_CHECKING:
    from patchtrain.exporting.loaders import Loader

HELP = "write the model as GGUF or in another dtype; check who can load it"

_DTYPES = {"gguf": ("f16", "f32", "bf16", "q8_0"), "hf": ("bf16", "f32", "f16")}
_TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder or a model folder")
    parser.add_argument("--to", choices=tuple(_DTYPES), help="the form to write")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="a file for gguf (default: RUN/NAME-DTYPE.gguf), a folder for hf",
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES["gguf"],
        help="type of the matrices (default: f16 for gguf, as it is for hf); q8_0 in gguf only",
    )
    parser.add_argument(
        "--stage", type=int, metavar="N", help="the model as it was at the end of stage N"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument("--check", action="store_true", help="say who can load the model")
    general(parser, json="what was written or found", quiet=True)


def run(args: argparse.Namespace) -> int:
    if args.check == (args.to is not None):
        raise UsageError("give either --to gguf, --to hf or --check")
    if args.check and (args.out or args.dtype):
        raise UsageError("--check writes nothing, so --out and --dtype do nothing")
    if args.to and args.dtype and args.dtype not in _DTYPES[args.to]:
        raise UsageError(f"--dtype {args.dtype} is for --to gguf only")
    if args.to == "hf" and not args.out:
        raise UsageError("--to hf needs --out FOLDER")
    from patchtrain.evaluation.loading import find_model, find_stage

    place = find_stage(args.run_folder, args.stage)
    folder, _ = find_model(place)
    if args.check:
        return _check(folder, args)
    base = Path(args.run_folder).resolve().name
    name = base if args.stage is None else f"{base}-stage-{args.stage}"
    return _gguf(folder, name, args) if args.to == "gguf" else _hf(folder, args)


def _gguf(folder: Path, name: str, args: argparse.Namespace) -> int:
    from patchtrain.exporting.gguf_file import write_gguf
    from patchtrain.model_folder import check_model_folder, weight_files

    dtype = args.dtype or "f16"
    out = Path(args.out) if args.out else Path(args.run_folder) / f"{name}-{dtype}.gguf"
    _free(out, args.overwrite)
    check_model_folder(folder)
    total = sum(file.stat().st_size for file in weight_files(folder))
    with results.progress(total, "bytes", "written", args.quiet) as advance:
        found = write_gguf(folder, out, dtype, name, advance)
    told = {
        "path": str(out),
        "architecture": found.architecture,
        "dtype": dtype,
        "weights": found.weights,
        "f16_instead": found.fallback,
        "bytes": found.bytes,
    }
    if args.json:
        results.show_json(told)
        return 0
    print(f"{out}: {found.architecture}, {found.weights} weights, {found.bytes / 1e6:,.1f} MB")
    if found.fallback:
        print(
            f"  {found.fallback} of them are f16: their rows are no multiple of 32, as q8_0's "
            f"blocks are"
        )
    print(f"try it  llama-cli -m {out}")
    return 0


def _hf(folder: Path, args: argparse.Namespace) -> int:
    import torch

    from patchtrain.evaluation.loading import load_model
    from patchtrain.files import whole_folder
    from patchtrain.model_folder import keep_card

    out = Path(args.out)
    if out.resolve() == folder.resolve():
        raise UsageError(f"--out {out} is the model itself; name another folder")
    _free(out, args.overwrite)
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise UsageError(f"{out} is not a model folder, so --overwrite does not touch it")
    loaded = load_model(folder, "cpu")
    if args.dtype:
        loaded.model.to(getattr(torch, _TORCH[args.dtype]))
    with whole_folder(out, replace=True) as temporary:
        loaded.model.save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
        keep_card(folder, temporary)
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    if args.json:
        results.show_json({"path": str(out), "dtype": dtype})
    else:
        print(f"{out}: {type(loaded.model).__name__} in {dtype}")
    return 0


def _free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; replace it with --overwrite, or choose another with --out")


def _check(folder: Path, args: argparse.Namespace) -> int:
    from patchtrain.exporting.loaders import check_loaders

    found = check_loaders(folder)
    if args.json:
        results.show_json([loader.to_dict() for loader in found])
    else:
        print(folder)
        for loader in found:
            _show(loader)
    return 1 if any(loader.takes is False for loader in found) else 0


def _show(loader: Loader) -> None:
    verdict = {True: "yes", False: "no", None: "not tried"}[loader.takes]
    lines = [*loader.reasons, *loader.done, *loader.notes] or [""]
    print(f"  {loader.name:14}{verdict:11}{lines[0]}")
    for line in lines[1:]:
        print(f"  {'':25}{line}")
