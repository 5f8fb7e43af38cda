"""One recipe, start to finish: model, training, export, evaluation, samples, page."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from patchtrain.data.store import VERIFIED_BYTES, TokenStore
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.evaluation.evaluate import Window, split_loss
from patchtrain.evaluation.generate import complete
from patchtrain.evaluation.perplexity import TextLoss
from patchtrain.files import write_text
from patchtrain.plan import Plan
from patchtrain.recipe import Recipe, build_model
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from patchtrain.training.config import PatchConfig
from patchtrain.training.record import running_process
from patchtrain.training.trainer import PatchTrainer

SAMPLE_TOKENS = 64
# How long the estimate of the time measures, and the FLOPs of the largest pass it tries on a CPU.
_TIMED_SECONDS = 0.5
_LARGEST_PASS = 1e12


@dataclass(frozen=True)
class Prepared:
    """A recipe ready to train: everything is loaded, checked and resolved."""

    recipe: Recipe
    store: TokenStore
    trainer: PatchTrainer

    @property
    def plan(self) -> Plan:
        return self.trainer.plan


def prepare_run(recipe: Recipe, quiet: bool = False) -> Prepared:
    """Open the store, build the model, resolve the plan. Writes nothing.

    Raises:
        UsageError: where recipe, store and model do not fit together.
    """
    store = TokenStore.open(recipe.store)
    store.verify(at_most=VERIFIED_BYTES)
    tokenizer = store.load_tokenizer()
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    model = build_model(recipe, store.vocab_size, special, tokenizer.get_vocab())
    try:
        args = PatchConfig(
            output_dir=str(recipe.out),
            plan=recipe.plan,
            seed=recipe.seed,
            **{"disable_tqdm": quiet, "log_level": "error", **recipe.training},
        )
        with _no_new_folders(recipe.out) if is_first_process() else nullcontext():
            trainer = PatchTrainer(model, args, store, processing_class=tokenizer)
    except Exception as error:  # Trainer's own refusals, of many kinds
        if isinstance(error, PatchtrainError) or (isinstance(error, OSError) and error.filename):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"training: {one_line(f'{kind}{error}', 300)}") from error
    return Prepared(recipe, store, trainer)


@contextmanager
def _no_new_folders(path: Path) -> Iterator[None]:
    """Take away the empty folders that Trainer makes for its output before anything is certain."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()


def is_first_process() -> bool:
    """Whether this is the only process, or the first that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a run folder that exists, unless it is a run to be replaced.

    Raises:
        UsageError: naming the folder and the two ways on.
    """
    if not is_first_process() or not out.exists():
        return  # only the first process decides: it may have made the folder by now
    if not out.is_dir():
        raise UsageError(f"the run folder {out} is a file; choose another with out=FOLDER")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(
            f"the run folder {out} exists; choose another with out=FOLDER, "
            f"or replace it with --overwrite"
        )
    if not (out / "recipe.yaml").is_file():
        raise UsageError(f"{out} is not a run folder, so --overwrite does not touch it")
    if pid := running_process(out):
        raise UsageError(f"process {pid} is still training in {out}; stop it first")


def run_recipe(recipe: Recipe, overwrite: bool = False, quiet: bool = False) -> RunFolder:
    """Train a recipe and write its whole run folder; returns it.

    A run that is to be replaced (``overwrite``) is moved aside and deleted only when the new one is
    whole. On several processes (torchrun) every process calls this; the first one writes.
    """
    check_out(recipe.out, overwrite)
    transformers.utils.logging.disable_progress_bar()  # its bars of a second each, between ours
    prepared = prepare_run(recipe, quiet)
    trainer, folder = prepared.trainer, RunFolder(recipe.out)
    if not trainer.is_world_process_zero():
        trainer.accelerator.wait_for_everyone()
        trainer.train()
        trainer.export(folder.model)
        trainer.accelerator.wait_for_everyone()
        return folder
    record = trainer.record
    assert record is not None
    with _replaced(recipe.out, overwrite) as kept:
        write_text(folder.recipe_file, recipe.resolved().to_yaml())
        trainer.begin_record()
        try:
            if not quiet:
                print(announce(prepared), file=sys.stderr, flush=True)
            trainer.accelerator.wait_for_everyone()
            trainer.train()
            record.update(status="running")  # not finished before the model is written
            trainer.export(folder.model)
            _conclude(prepared, folder)
            record.update(status="finished")
            write_page([folder], folder.report_file)
        except BaseException as error:
            with suppress(OSError):  # the disk may be what failed
                record.stop(error)
            if kept is not None:
                print(f"the run it was to replace is kept in {kept}", file=sys.stderr)
            raise
    trainer.accelerator.wait_for_everyone()
    return folder


@contextmanager
def _replaced(out: Path, overwrite: bool) -> Iterator[Path | None]:
    """An empty folder at ``out``; the run that stood there waits aside until the block succeeds.

    Yields where it waits, or None. If the block fails both stay. A run already waiting, from an
    earlier failure, is the better one to keep.
    """
    kept = out.resolve().with_name(f"{out.resolve().name}.replaced")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise UsageError(f"the run folder {out} was made by another run meanwhile")
        if kept.exists():
            shutil.rmtree(out.resolve())
        else:
            out.resolve().rename(kept)
    out.resolve().mkdir(parents=True, exist_ok=True)
    yield kept if kept.exists() else None
    shutil.rmtree(kept, ignore_errors=True)


def announce(prepared: Prepared) -> str:
    """One line on what begins: the model, the stages, and how the patch loss is computed."""
    trainer = prepared.trainer
    stages = ", then ".join(
        f"{stage.name} for {stage.steps:,} steps" for stage in trainer.plan.stages
    )
    patches = any(stage.patch_size > 1 for stage in trainer.plan.stages)
    loss = f"\npatch loss: {trainer.backend}" if patches else ""
    read = f"\n{documents_line(trainer)}" if trainer.plan.spec.documents == "separate" else ""
    warnings = "".join(f"\nwarning: {text}" for text in trainer.plan.warnings())
    return (
        f"{type(trainer.model).__name__} of {trainer.size.parameters:,} parameters: "
        f"{stages} on {trainer.plan.total_tokens:,} tokens{loss}{read}{warnings}"
    )


def documents_line(trainer: PatchTrainer) -> str:
    """How documents are read, and what it costs, in words."""
    found = trainer.documents()
    if found["read"] == "mixed":
        return "documents: mixed, as a sequence runs on over their ends"
    share = found["added_tokens"] / found["stream_tokens"]
    return (
        f"documents: separate, {share:.1%} of {found['stream_tokens']:,} tokens are padding or "
        f"start tokens"
    )


def _conclude(prepared: Prepared, folder: RunFolder) -> None:
    """What comes after training, on the exported model: the loss on all of validation, samples."""
    recipe, store, trainer = prepared.recipe, prepared.store, prepared.trainer
    # What is measured is what was written, not what is in memory; which makes room for it first.
    trainer.optimizer = None
    trainer.model.zero_grad(set_to_none=True)
    trainer.accelerator.free_memory()
    model = AutoModelForCausalLM.from_pretrained(
        folder.model, use_safetensors=True, trust_remote_code=recipe.model.trust_remote_code
    ).to(trainer.args.device)
    result = None
    if len(store.validation.tokens) > 1:
        T = trainer.plan.context_length
        split = store.validation
        nats, targets = split_loss(model, split, Window(T, T), trainer.plan.spec.documents)
        loss = TextLoss(nats, targets, split.utf8_bytes, split.words)
        result = {**loss.to_dict(), "context_length": T, "stride": T, "text": "validation",
                  "documents": trainer.plan.spec.documents}  # fmt: skip
    if recipe.samples:
        tokenizer = trainer.processing_class
        samples = complete(model, tokenizer, recipe.samples, SAMPLE_TOKENS)
        write_text(folder.samples_file, json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    assert trainer.record is not None
    trainer.record.update(result=result, store=describe_store(store))


def describe_store(store: TokenStore) -> dict[str, Any]:
    """The entry ``store`` of ``run.json``."""
    return {
        "path": str(store.path.resolve()),
        "fingerprint": store.fingerprint,
        "train_tokens": len(store.train.tokens),
        "validation_tokens": len(store.validation.tokens),
        "vocab_size": store.vocab_size,
    }


def estimate_seconds(prepared: Prepared) -> float | None:
    """Time of the whole plan, from a few timed passes on this machine.

    A device pass has the same positions in every stage, so one measurement serves all of them;
    the optimizer step is timed with it and counted once a step. None where a single pass would
    take minutes: a model for a GPU, asked about on a CPU.
    """
    trainer, plan = prepared.trainer, prepared.plan
    stage = plan.stages[-1]
    model = trainer.model
    flops = plan.pass_sequences * plan.context_length * trainer.flops_per_position
    if trainer.args.device.type == "cpu" and flops > _LARGEST_PASS:
        return None
    rows = trainer.batches.inputs(stage.first_step)
    rows.setdefault("labels", rows["input_ids"])
    inputs = {
        name: torch.from_numpy(value[: plan.pass_sequences, : plan.context_length])
        for name, value in rows.items()
    }
    inputs = {name: value.to(trainer.args.device) for name, value in inputs.items()}
    try:
        optimizer = trainer.create_optimizer()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UsageError(f"training: {one_line(error, 300)}") from error
    optimizer.zero_grad()

    def one_pass() -> None:
        with trainer.accelerator.autocast():
            loss = model(**inputs).loss
        loss.backward()

    def timed(work: Any, least: float = _TIMED_SECONDS) -> float:
        work()  # warm up
        _synchronize()
        begin, count = time.perf_counter(), 0
        while count < 3 or time.perf_counter() - begin < least:
            work()
            count += 1
            _synchronize()
        return (time.perf_counter() - begin) / count

    model.train()
    pass_seconds = timed(one_pass)
    # Weights do not move: a rate of zero, and the optimizer's state is thrown away.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step_seconds = timed(optimizer.step)
    trainer.optimizer = None
    model.zero_grad(set_to_none=True)
    return sum(s.steps * (plan.passes(s) * pass_seconds + step_seconds) for s in plan.stages)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
