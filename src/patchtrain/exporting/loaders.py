"""Which programs take a model, found out by letting them try as far as they are installed.

``transformers`` and the GGUF file are really loaded and compared, logit by logit; llama.cpp runs
where its package is there. vLLM is asked for its list of architectures where it is installed; where
it is not, what can be read from the folder is checked against what its loader reads.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from patchtrain import chat
from patchtrain.errors import PatchtrainError, one_line
from patchtrain.evaluation.generate import Sampling, continue_rows
from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.exporting import gguf_file, gguf_model, llama_cpp
from patchtrain.extras import how_to_install
from patchtrain.model_folder import weight_files
from patchtrain.sizing import meta_model

LOADERS = ("transformers", "gguf", "llama.cpp", "vllm")

# Of the architectures that are trained most with patchtrain, those in vLLM's own registry. It runs
# others through transformers' model code where that leaves the attention to it.
_VLLM_OWN = frozenset(
    f"{name}ForCausalLM"
    for name in (
        *("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Gemma"),
        *("Gemma2", "Gemma3", "Phi", "Phi3", "Granite", "GraniteMoe", "Cohere", "Cohere2"),
        *("Olmo", "Olmo2", "Olmo3", "Olmoe", "StableLm", "Starcoder2", "GPTNeoX", "GPTJ", "OPT"),
        *("Bloom", "Falcon", "DeepseekV2", "DeepseekV3", "MiniCPM3", "GptOss", "Mamba", "Glm4"),
    )
) | {"GPT2LMHeadModel"}

_TEXT = "The cell's 12,345 leaves:\n\n  two  spaces,\tdon't; na\u00efve \u4f60\u597d \U0001f600\n"
_TALK = [
    {"role": "user", "content": "What is a cell?"},
    {"role": "assistant", "content": "A unit of life."},
    {"role": "user", "content": "And a leaf?"},
]
_PROMPT_TOKENS, _NEW_TOKENS = 24, 16
_CLOSE = 1e-3  # of the largest logit: two orders of summing in float32 differ by less


@dataclass
class Loader:
    """What one program says to a model.

    ``takes``: None where that could not be found out. ``done``: what was checked, in words.
    ``reasons``: why it does not take it. ``notes``: what else a user may want to know.
    """

    name: str
    takes: bool | None = True
    done: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def refuse(self, *reasons: str) -> None:
        self.takes = False
        self.reasons += reasons

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_loaders(folder: Path) -> list[Loader]:
    """What each of the ``LOADERS`` says to the model in ``folder``, on the CPU."""
    loaders = {name: Loader(name) for name in LOADERS}
    loaded = _guarded(loaders["transformers"], lambda: _transformers(loaders, folder))
    _guarded(loaders["vllm"], lambda: _vllm(loaders["vllm"], folder))
    if loaded is None:
        for name in ("gguf", "llama.cpp"):
            loaders[name].refuse("transformers does not load the model")
    else:
        _guarded(loaders["gguf"], lambda: _gguf(loaders, loaded))
        if loaders["gguf"].takes is not True and loaders["llama.cpp"].takes is True:
            loaders["llama.cpp"].takes = loaders["gguf"].takes
            loaders["llama.cpp"].notes.append("there is no GGUF file for it, see gguf")
    return list(loaders.values())


def _guarded(loader: Loader, check: Callable[[], Any]) -> Any:
    """The result of ``check``; what it raises is a reason."""
    try:
        return check()
    except Exception as error:  # of any kind: it is other people's code on a foreign model
        kind = "" if isinstance(error, PatchtrainError) else f"{type(error).__name__}: "
        loader.refuse(one_line(f"{kind}{error}", 300))
        return None


def _transformers(loaders: dict[str, Loader], folder: Path) -> LoadedModel:
    loader = loaders["transformers"]
    loaded = load_model(folder, "cpu")
    loaded.model.float()
    logits = _logits(loaded.model, _prompt(loaded))
    if not torch.isfinite(logits).all():
        loader.refuse("its logits are not finite")
    (new,) = continue_rows(
        loaded.model, loaded.tokenizer, [_prompt(loaded)], _NEW_TOKENS, Sampling(greedy=True)
    )
    loader.done.append(f"loaded as {type(loaded.model).__name__}, wrote {len(new)} tokens")
    if loaded.model.generation_config.eos_token_id is None:
        loader.notes.append(
            "generation_config.json names no end token, so pipelines write up to their limit"
        )
    return loaded


def _gguf(loaders: dict[str, Loader], loaded: LoadedModel) -> None:
    loader = loaders["gguf"]
    wrong = gguf_file.obstacles(loaded.path)
    if wrong:
        loader.refuse(*wrong)
        return
    if importlib.util.find_spec("gguf") is None:
        loader.takes = None
        loader.notes.append(
            f"architecture and tokenizer can be written; to do it, {how_to_install('gguf')}"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        written = gguf_file.write_gguf(loaded.path, file, "f32", name=loaded.path.name)
        _read_back(loader, file, written.weights)
        _compare(loader, file, loaded)
        if loader.takes:
            runner = loaders["llama.cpp"]
            _guarded(runner, lambda: _llama_cpp(runner, file, loaded))


def _read_back(loader: Loader, file: Path, weights: int) -> None:
    """Through the reader of the package gguf."""
    from gguf import GGUFReader

    found = len(GGUFReader(file).tensors)
    loader.done.append(f"written in f32 and read back: {found} weights")
    if found != weights:
        loader.refuse(f"{weights} weights were written and {found} are read")


def _compare(loader: Loader, file: Path, loaded: LoadedModel) -> None:
    """Through transformers' own reader of GGUF, against the model itself."""
    from transformers import AutoModelForCausalLM

    # Its reader does not read the size of a head, but for llama, which mistral has become.
    config, kind = loaded.model.config, loaded.model.config.model_type
    own = {"config": config} if gguf_model.ARCHITECTURES[kind] == kind else {}
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True,
        trust_remote_code=False, **own,
    ).eval()  # fmt: skip
    ids = _prompt(loaded)
    here, there = _logits(loaded.model, ids), _logits(model, ids)
    apart = float((here - there).abs().max())
    if apart > _CLOSE * float(here.abs().max()):
        loader.refuse(f"transformers reads another model from it: logits differ by {apart:.2g}")
    else:
        loader.done.append(f"the same logits through transformers (at most {apart:.1g} apart)")


def _llama_cpp(loader: Loader, file: Path, loaded: LoadedModel) -> None:
    """llama.cpp itself: each token it writes is the likeliest here, and it reads text as here."""
    if not llama_cpp.available():
        loader.takes = None
        loader.notes.append(f"not run: {how_to_install('xllamacpp')}")
        return
    prompt, tokenizer = _prompt(loaded), loaded.tokenizer
    found = llama_cpp.run(file, prompt, _NEW_TOKENS, _TEXT, _TALK)
    wrong = unlikely(loaded, prompt, found.tokens)
    if not found.tokens:
        loader.refuse("llama.cpp writes nothing")
    elif wrong is None:
        loader.done.append(f"each of the {len(found.tokens)} tokens it writes is the likeliest")
    else:
        loader.refuse(f"token {wrong + 1} that it writes is not the likeliest one")
    if found.text_ids == tokenizer(_TEXT)["input_ids"]:
        loader.done.append("it cuts text in the same tokens")
    else:
        loader.refuse("it cuts text in other tokens")
    if tokenizer.chat_template:
        bos = tokenizer.bos_token or ""  # some versions of llama.cpp take it off
        here = chat.render(tokenizer, _TALK, "a conversation", prompt=True).removeprefix(bos)
        if found.rendered.removeprefix(bos).strip() != here.strip():
            loader.notes.append("its chat template renders a conversation in another way")


def unlikely(loaded: LoadedModel, prompt: list[int], new: list[int]) -> int | None:
    """Which of the ``new`` tokens after ``prompt`` is not the likeliest, end tokens left out.

    None if all are, as far as rounding lets one tell.
    """
    logits = _logits(loaded.model, prompt + new)[len(prompt) - 1 : -1]
    close = _CLOSE * float(logits.abs().max())
    logits[:, chat.stop_ids(loaded.model, loaded.tokenizer)] = -torch.inf
    behind = logits.max(-1).values - logits[range(len(new)), new]
    return next((place for place, gap in enumerate(behind.tolist()) if gap > close), None)


def _vllm(loader: Loader, folder: Path) -> None:
    """What vLLM's loader reads of a folder: architecture, weights by name, tokenizer."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    names = config.architectures or []
    if not names:
        loader.refuse("config.json names no architectures")
        return
    own, model = _vllm_registry(), meta_model(config)
    if any(name in own for name in names):
        loader.done.append(f"{names[0]} is in its registry")
    elif getattr(model, "_supports_attention_backend", False):
        loader.done.append(f"{names[0]} can run through its transformers backend")
    else:
        loader.refuse(f"{names[0]} is not known to be in its registry, and transformers' code "
                      f"for it does not leave the attention to vLLM")  # fmt: skip
    _whole(loader, folder, model)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).is_file():
            what = loader.notes.append if "generation" in name else loader.refuse
            what(f"there is no {name}")
    if config.dtype == torch.float32:
        loader.notes.append("by default it runs float32 weights in bfloat16 (--dtype float32)")
    if importlib.util.find_spec("vllm") is None:
        loader.notes.append("not run: vLLM is not installed")


def _vllm_registry() -> frozenset[str]:
    if importlib.util.find_spec("vllm") is None:
        return _VLLM_OWN
    from vllm import ModelRegistry

    return frozenset(ModelRegistry.get_supported_archs())


def _whole(loader: Loader, folder: Path, model: Any) -> None:
    """Whether the safetensors hold each weight of the model once, and none that is tied."""
    from safetensors import safe_open

    found: list[str] = []
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            found += weights.keys()
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if missing := sorted(set(listed) ^ set(found)):
            loader.refuse(f"index and files disagree on {len(missing)} weights: {missing[0]}")
    if double := sorted(name for name, times in Counter(found).items() if times > 1):
        loader.refuse(f"{len(double)} weights are there twice: {double[0]}")
    wanted = {name for name, _ in model.named_parameters()}  # a tied one has one name
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    if missing := sorted(wanted - set(found) - tied):
        loader.refuse(f"{len(missing)} weights are missing: {missing[0]}")
    if tied & set(found):
        loader.notes.append(f"the tied {sorted(tied & set(found))[0]} is there a second time")
    loader.done.append(f"{len(found)} weights in safetensors, by name and whole")


def _prompt(loaded: LoadedModel) -> list[int]:
    """Token ids to try a model with, the same each time, over all of its vocabulary."""
    generator = torch.Generator().manual_seed(0)
    limit = min(_PROMPT_TOKENS, (loaded.position_limit or 1024) - _NEW_TOKENS - 1)
    highest = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().num_embeddings)
    ids = torch.randint(highest, (max(1, limit),), generator=generator)
    return [int(token) for token in ids]


def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    """``(len(ids), V)`` in float32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()
