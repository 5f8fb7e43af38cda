"""One recipe, start to finish: model, training, export, evaluation, samples, page."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from patchtrain.data.store import VERIFIED_BYTES, TokenStore
from patchtrain.errors import (
    PatchtrainError,
    UsageError,
    memory_ran_out,
    one_line,
    warning_line,
)
from patchtrain.evaluation.evaluate import Window, split_loss
from patchtrain.evaluation.generate import complete
from patchtrain.evaluation.text_loss import TextLoss
from patchtrain.files import clear_partial, write_text
from patchtrain.model_folder import CARD
from patchtrain.plan import Plan
from patchtrain.recipe import Recipe, build_model
from patchtrain.report.card_file import write_card
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from patchtrain.stage import Stage
from patchtrain.training.config import PatchConfig
from patchtrain.training.identity import check_allowed, refuse_changes
from patchtrain.training.measuring import step_seconds, too_large
from patchtrain.training.processes import (
    ending_with_the_others,
    is_first_process,
    of_first,
    together,
)
from patchtrain.training.trainer import PatchTrainer

SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class Prepared:
    """A recipe ready to train: everything is loaded, checked and resolved."""

    recipe: Recipe
    store: TokenStore
    trainer: PatchTrainer

    @property
    def plan(self) -> Plan:
        return self.trainer.plan

    def warnings(self) -> list[str]:
        """What a user should know before it starts."""
        told = list(self.plan.warnings())
        if self.recipe.samples and not self.store.has_tokenizer:
            told.append("the samples are left out: the store has no tokenizer to read them with")
        return told


def prepare_run(recipe: Recipe, quiet: bool = False) -> Prepared:
    """Open the store, build the model, resolve the plan. Writes nothing.

    Several processes meet here; what goes wrong on one ends all.

    Raises:
        UsageError: where recipe, store and model do not fit together.
    """
    args = _arguments(recipe, quiet)
    with together():
        return _prepare(recipe, args)


def _arguments(recipe: Recipe, quiet: bool) -> PatchConfig:
    """The training arguments; making them connects this process with the others."""
    values = {"disable_tqdm": quiet, "log_level": "error", **copy.deepcopy(recipe.training)}
    with _as_usage_errors():
        return PatchConfig(output_dir=str(recipe.out), plan=recipe.plan, seed=recipe.seed, **values)


@contextmanager
def _as_usage_errors() -> Iterator[None]:
    """Trainer's own refusals as ours."""
    try:
        yield
    except Exception as error:  # of many kinds
        named = isinstance(error, OSError) and error.filename
        if isinstance(error, PatchtrainError) or named or memory_ran_out(error):
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"training: {one_line(f'{kind}{error}', 300)}") from error


def _prepare(recipe: Recipe, args: PatchConfig) -> Prepared:
    store = TokenStore.open(recipe.store)
    store.verify(at_most=VERIFIED_BYTES)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    if store.has_tokenizer:
        tokenizer = store.load_tokenizer()
        special = {name: getattr(tokenizer, name) for name in names}
        model = build_model(recipe, store.vocab_size, special, tokenizer.get_vocab())
    else:
        tokenizer, special = None, dict.fromkeys(names, store.eos_token_id)
        model = build_model(recipe, store.vocab_size, special)
    with _as_usage_errors(), _no_new_folders(recipe.out) if is_first_process() else nullcontext():
        trainer = PatchTrainer(model, args, store, processing_class=tokenizer)
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


def check_out(out: Path, overwrite: bool, resume: str = "no") -> None:
    """Refuse a run folder that exists, unless it is a run to be replaced or to go on with.

    Raises:
        UsageError: naming the folder and the ways on.
    """
    if not is_first_process():
        return  # only the first process decides: it may have made the folder by now
    if overwrite and resume != "no":
        raise UsageError("--overwrite starts anew and --resume goes on; give one of them")
    if out.exists() and not out.is_dir():
        raise UsageError(f"the run folder {out} is a file; choose another with out=FOLDER")
    if not RunFolder(out).holds_something():
        if resume == "yes":
            raise UsageError(
                f"there is no run at {out} to resume; start it without --resume, or with "
                f"--resume=auto, which begins where there is nothing yet"
            )
        return
    if not overwrite and resume == "no":
        raise UsageError(
            f"the run folder {out} exists; go on with it with --resume, replace it with "
            f"--overwrite, or choose another with out=FOLDER"
        )
    if not (out / "recipe.yaml").is_file():
        option = "--overwrite" if overwrite else "--resume"
        raise UsageError(f"{out} is not a run folder, so {option} does not touch it")


def run_recipe(
    recipe: Recipe,
    overwrite: bool = False,
    quiet: bool = False,
    resume: str = "no",
    allow_change: Iterable[str] = (),
) -> RunFolder:
    """Train a recipe and write its whole run folder; returns it.

    A run that is to be replaced (``overwrite``) is moved aside and deleted only when the new one is
    whole. On several processes (torchrun) every process calls this; the first one writes.

    Args:
        recipe: what to train.
        overwrite: replace a run that stands in its folder.
        quiet: no progress.
        resume: ``"yes"`` goes on with the run in its folder from its newest whole checkpoint;
            ``"auto"`` does so if there is one; ``"no"`` refuses a folder that is there.
        allow_change: what may differ from the run so far (``identity.MAY_CHANGE``).
    """
    allow_change = check_allowed(allow_change, resume)
    transformers.utils.logging.disable_progress_bar()  # its bars of a second each, between ours
    folder = RunFolder(recipe.out)
    args = _arguments(recipe, quiet)
    with ExitStack() as held:
        with together():
            check_out(recipe.out, overwrite, resume)
            if is_first_process() and folder.holds_something():
                held.enter_context(folder.locked())  # before anything slow: nobody else takes it
        with together():
            prepared = _prepare(recipe, args)
        trainer = prepared.trainer
        going_on = of_first(resume != "no" and folder.recipe_file.is_file())
        kept = None
        with together():
            if trainer.is_world_process_zero():
                if going_on:
                    _check_same_run(folder, trainer, allow_change)
                else:
                    kept = held.enter_context(_replaced(recipe.out, overwrite))
                    held.enter_context(folder.locked())
                clear_partial(recipe.out)
        if of_first(going_on and _is_finished(folder)):
            trainer.tell(f"{recipe.out} is finished already; nothing to do")
            return folder
        held.enter_context(ending_with_the_others(recipe.out))
        if not trainer.is_world_process_zero():
            trainer.train(going_on, allow_change=allow_change)
            trainer.export(folder.model)
        else:
            _run(prepared, folder, going_on, allow_change, kept, quiet)
    return folder


def _run(
    prepared: Prepared,
    folder: RunFolder,
    going_on: bool,
    allow_change: Iterable[str],
    kept: Path | None,
    quiet: bool,
) -> None:
    """What the first process does: train, export, measure, write the page."""
    trainer = prepared.trainer
    record = trainer.record
    assert record is not None
    write_text(folder.recipe_file, prepared.recipe.resolved(trainer.size.parameters).to_yaml())
    if not going_on:
        trainer.begin_record()  # a failure before the first step is recorded too
    try:
        if not quiet:
            print(announce(prepared), file=sys.stderr, flush=True)
        trainer.status_after_training = "running"
        trainer.train(going_on, allow_change=allow_change)
        trainer.export(folder.model)
        _conclude(prepared, folder)
        record.update(status="finished")  # as the page says it; without one, it is not
        if (kept_card := write_card(folder).kept) and not quiet:
            print(f"{folder.model / CARD}: {kept_card}", file=sys.stderr)
        write_page([folder], folder.report_file)
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            record.stop(error)
        if kept is not None:
            print(f"the run it was to replace is kept in {kept}", file=sys.stderr)
        raise


def _check_same_run(folder: RunFolder, trainer: PatchTrainer, allow_change: Iterable[str]) -> None:
    """Refuse to go on in the folder of a run that was another, also before its first checkpoint."""
    try:
        before = folder.info()["identity"]
    except (OSError, PatchtrainError, KeyError, TypeError):
        return  # killed before it began; the checkpoints say who they are
    refuse_changes(before, trainer.identity, allow_change, str(folder.path))


def _is_finished(folder: RunFolder) -> bool:
    info = folder.info() if folder.info_file.is_file() else {}
    whole = (folder.model / "config.json").is_file() and folder.report_file.is_file()
    return info.get("status") == "finished" and whole


@contextmanager
def _replaced(out: Path, overwrite: bool) -> Iterator[Path | None]:
    """An empty folder at ``out``; the run that stood there waits aside until the block succeeds.

    Yields where it waits, or None. If the block fails both stay. A run already waiting, from an
    earlier failure, is the better one to keep.
    """
    kept = out.resolve().with_name(f"{out.resolve().name}.replaced")
    if RunFolder(out).holds_something():
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
        f"{stage.named(trainer.plan.context_length)} for {stage.steps:,} steps"
        for stage in trainer.plan.stages
    )
    patches = any(stage.patch_size > 1 for stage in trainer.plan.stages)
    loss = f"\npatch loss: {trainer.backend}" if patches else ""
    read = f"\n{documents_line(trainer)}" if trainer.plan.spec.documents == "separate" else ""
    warnings = "".join(f"\n{warning_line(text)}" for text in prepared.warnings())
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
    if recipe.samples and store.has_tokenizer:
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
    """Time of the whole plan, from a few timed passes of each stage on this machine.

    None where a single pass would take minutes: a model for a GPU, asked about on a CPU.
    """
    trainer, plan = prepared.trainer, prepared.plan

    def rows(stage: Stage, step: int) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(value[: plan.pass_rows(stage)])
            for name, value in trainer.batches.inputs(step).items()
        }

    if too_large(trainer.size, plan, trainer.args.device):
        return None
    with _as_usage_errors():
        optimizer = trainer.create_optimizer()
    steps = step_seconds(
        trainer.model, plan, optimizer, rows, trainer.args.device, trainer.accelerator.autocast
    )
    trainer.optimizer = None
    return sum(stage.steps * seconds for stage, seconds in zip(plan.stages, steps, strict=True))
