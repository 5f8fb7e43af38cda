"""A model to evaluate, from a run folder or from any plain Hugging Face model folder.

Nothing is downloaded and nothing that came with a model is executed: what is in the folder is read,
the weights from safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.model_folder import check_model_folder, has_tokenizer
from patchtrain.modeling import longest_context
from patchtrain.runs import RunFolder


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode with its tokenizer.

    ``own_tokenizer``: None where it was trained on the tokens of a store that has none.
    ``run``: the run folder it came from, or None. ``context_length``: positions it was trained on,
    or for a plain model those it allows (None if it does not say). ``position_limit``: the most
    positions the model allows.
    """

    path: Path
    run: RunFolder | None
    model: Any
    own_tokenizer: Any
    context_length: int | None
    position_limit: int | None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; ``UsageError`` where it has none."""
        if self.own_tokenizer is None:
            raise UsageError(
                f"the model in {self.path} has no tokenizer, which this needs: it was trained on "
                f"tokens alone; save the tokenizer they were made with into that folder"
            )
        return self.own_tokenizer

    def check_tokenizer(self, other: Any, store: Path) -> None:
        """``UsageError`` where ``other``, the tokenizer of a store, is not the model's."""
        if other.get_vocab() != self.tokenizer.get_vocab():
            raise UsageError(
                f"the token store {store} was made with another tokenizer than the model in "
                f"{self.path}: its token ids mean something else"
            )

    @property
    def start_token_id(self) -> int:
        """What a document begins with: the BOS token, or the EOS that ends the one before it."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise UsageError(f"the tokenizer in {self.path} has neither a BOS nor an EOS token")


def find_model(path: str | Path) -> tuple[Path, RunFolder | None]:
    """The model folder behind ``path`` and the run, if ``path`` is one; or ``UsageError``."""
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"no run or model folder at {path}")
    if (path / "run.json").is_file():
        run = RunFolder.open(path)
        if not (run.model / "config.json").is_file():
            status = one_line(run.info().get("status", "unknown"), 40)
            raise UsageError(
                f"{path} has no model yet (its status is '{status}'): "
                f"a finished run has one in {run.model}"
            )
        return run.model, run
    if (path / "config.json").is_file():
        return path, None
    raise UsageError(f"{path} is neither a run (no run.json) nor a model folder (no config.json)")


def find_stage(path: str | Path, number: int | None) -> Path:
    """Where the model of a run's stage ``number`` is, from 1; ``path`` itself without a number.

    The last stage's model is the run's. ``UsageError``: the run has no such stage, or kept none.
    """
    path = Path(path)
    if number is None:
        return path
    if not (path / "run.json").is_file():
        raise UsageError(f"{path} is not a run folder, so it has no stages; leave --stage out")
    run = RunFolder.open(path)
    stages = run.part("plan").get("stages")
    last = len(stages) if isinstance(stages, list) else 0
    if not 1 <= number <= last:
        raise UsageError(f"{path} has {last} stages, counted from 1, so there is no stage {number}")
    if number == last:
        return path
    kept = run.stage_models()
    if number not in kept:
        raise UsageError(
            f"{path} kept no model of stage {number} (training.keep_stage_models keeps them)"
        )
    return kept[number]


def load_model(path: str | Path, device: str | None = None) -> LoadedModel:
    """Load the model of a run or of a model folder, on a GPU if there is one.

    ``UsageError``: no model there. ``PatchtrainError``: one that cannot be read, or whose weights
    are incomplete.
    """
    folder, run = find_model(path)
    trained = _trained_context(run) if run else None
    check_model_folder(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = None
        if has_tokenizer(folder):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}", limit=500)
        raise PatchtrainError(f"cannot load the model in {folder}: {reason}") from error
    if missing := sorted(loading.get("missing_keys", ())):
        raise PatchtrainError(
            f"the model in {folder} lacks {len(missing)} weights, among them {missing[0]}"
        )
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    limit = longest_context(model)
    return LoadedModel(folder, run, model, tokenizer, trained or limit, limit)


def _trained_context(run: RunFolder) -> int | None:
    length = run.part("plan").get("context_length")
    if length is None:
        return None
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise PatchtrainError(
            f"{run.info_file}: plan.context_length is {one_line(repr(length), 40)}, not a length"
        )
    return length
