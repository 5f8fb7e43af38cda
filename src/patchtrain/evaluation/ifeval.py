"""IFEval (Zhou et al. 2023, arXiv:2311.07911): instructions whose following a program can check.

The prompts, the checks and the four accuracies are lm-eval's task ``ifeval``, run by lm-eval's own
evaluator; only the writing of the answers is done here, so that they are kept and a killed
measurement goes on. Nothing is downloaded but the prompts, where no file is given.

Strict takes an answer as it is; loose also without its first line, its last line, its asterisks. A
prompt counts where all its instructions are followed, an instruction by itself.
"""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patchtrain import chat
from patchtrain.data.rows import file_rows
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.evaluation.answering import Decoding, answer_prompts
from patchtrain.evaluation.kept_lines import KeptLines, key_of
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.uncertainty import mean, ratio_stderr
from patchtrain.evaluation.zero_shot import without_bars
from patchtrain.extras import require
from patchtrain.model_folder import fingerprint

HUB_PROMPTS = "hf:google/IFEval"
MAX_NEW_TOKENS = 1280  # lm-eval's
_NAMES = {"prompt_strict": "prompt_level_strict_acc", "prompt_loose": "prompt_level_loose_acc",
          "instruction_strict": "inst_level_strict_acc",
          "instruction_loose": "inst_level_loose_acc"}  # fmt: skip
_COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
_KEPT = ("text", "tokens", "stopped", "prompt_cut")
_UNTRAINED = (
    "nltk's punkt_tab is not installed, so sentences are told by an untrained punkt; "
    "python -m nltk.downloader punkt_tab gets it"
)


def read_prompts(file: str | None, first: int | None = None) -> list[dict[str, Any]]:
    """IFEval's prompts from a file of JSON lines, or from the hub; only the ``first`` ones.

    Raises:
        UsageError: there are none.
        PatchtrainError: a row is no prompt of IFEval, with its file and line.
    """
    found = []
    for where, row in file_rows(file or HUB_PROMPTS, "holds no prompts: give JSON lines"):
        names, values = row.get("instruction_id_list"), row.get("kwargs")
        lists = isinstance(names, list) and isinstance(values, list) and len(names) == len(values)
        if not isinstance(row.get("prompt"), str) or not names or not lists:
            raise PatchtrainError(
                f"{where} is no prompt of IFEval: it needs prompt, instruction_id_list and kwargs, "
                "one for each instruction"
            )
        columns = {name: row.get(name) for name in _COLUMNS}
        found.append({**columns, "where": str(where)})
        if len(found) == first:
            break
    if not found:
        raise UsageError(f"there is no prompt in {file}")
    return found


def ifeval(
    loaded: LoadedModel,
    prompts: Sequence[dict[str, Any]],
    kept: KeptLines,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``evaluation.json`` keeps, and each prompt with its answer and what was followed.

    Args:
        loaded: a model whose tokenizer has a chat template (``chat.use_template``).
        prompts: of ``read_prompts``.
        kept: where answers are kept, and taken from if they are there.
        max_new_tokens: of an answer.
        batch_size: see ``answering.answer_prompts``.
        progress: told of every prompt answered.

    Raises:
        UsageError: lm-eval is not installed, or does not know an instruction.
    """
    with _lm_eval() as (task_config, sentences, known):
        for prompt in prompts:
            for name in prompt["instruction_id_list"]:
                if name not in known:
                    shown = one_line(repr(name), 60)
                    raise UsageError(f"{prompt['where']}: lm-eval knows no instruction {shown}")
        answerer = _answerer(loaded, kept, max_new_tokens, batch_size, progress)
        found = _evaluate(task_config, prompts, answerer)
    samples = [
        {
            **{name: prompt[name] for name in _COLUMNS},
            **{name: answerer.given[sample["arguments"][0][0]][name] for name in _KEPT},
            "strict": list(map(bool, sample["inst_level_strict_acc"])),
            "loose": list(map(bool, sample["inst_level_loose_acc"])),
        }
        for prompt, sample in zip(prompts, found["samples"]["ifeval"], strict=True)
    ]
    scores = found["results"]["ifeval"]
    result: dict[str, Any] = {"measure": "ifeval"}
    for name, theirs in _NAMES.items():
        result[name] = float(scores[f"{theirs},none"])
        level, kind = name.split("_")
        followed = [sample[kind] for sample in samples]
        one_each = level == "prompt"
        result[f"{name}_stderr"] = ratio_stderr(
            [float(all(each)) if one_each else sum(each) for each in followed],
            [1.0 if one_each else len(each) for each in followed],
        )
    result |= {
        "prompts": len(samples),
        "instructions": sum(len(sample["strict"]) for sample in samples),
        "by_group": _by_group(samples),
        "max_new_tokens": max_new_tokens,
        "not_ended": sum(not sample["stopped"] for sample in samples),
        "prompts_cut": sum(sample["prompt_cut"] > 0 for sample in samples),
        "sentences": sentences,
    }
    return result, samples


def _by_group(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Strict and loose accuracy of each group of instructions, such as ``length_constraints``."""
    groups: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for sample in samples:
        for name, *both in zip(
            sample["instruction_id_list"], sample["strict"], sample["loose"], strict=True
        ):
            groups[name.split(":")[0]].append((both[0], both[1]))
    return {
        name: {
            "strict": mean([strict for strict, _ in found]),
            "loose": mean([loose for _, loose in found]),
            "instructions": len(found),
        }
        for name, found in sorted(groups.items())
    }


def _answerer(
    loaded: LoadedModel,
    kept: KeptLines,
    max_new_tokens: int,
    batch_size: int | None,
    progress: Callable[[int], None] | None,
) -> Any:
    """A model as lm-eval knows one, which can do nothing but answer."""
    from lm_eval.api.model import LM

    model = fingerprint(loaded.path)

    class Answerer(LM):  # type: ignore[misc, unused-ignore]
        tokenizer_name = "patchtrain"

        def __init__(self) -> None:
            super().__init__()
            self.given: dict[str, dict[str, Any]] = {}

        def apply_chat_template(
            self, chat_history: chat.Messages, add_generation_prompt: bool = True
        ) -> str:
            where = "a prompt of IFEval"
            return chat.render(loaded.tokenizer, chat_history, where, add_generation_prompt)

        def generate_until(self, requests: list[Any]) -> list[str]:
            keys = {
                request.args[0]: key_of(model, request.args[0], max_new_tokens)
                for request in requests
            }
            self.given = {text: row for text, key in keys.items() if (row := kept.get(key))}
            if progress is not None:
                progress(len(self.given))
            new = [text for text in keys if text not in self.given]
            for index, given in answer_prompts(loaded, new, Decoding(max_new_tokens), batch_size):
                text = new[index]
                self.given[text] = kept.add(keys[text], {"prompt": text, **given.to_dict()})
                if progress is not None:
                    progress(1)
            return [self.given[request.args[0]]["text"] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

    return Answerer()


def _evaluate(
    task_config: dict[str, Any], prompts: Sequence[dict[str, Any]], answerer: Any
) -> dict[str, Any]:
    """What lm-eval's evaluator says of the answers."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    def rows(**_: Any) -> dict[str, Any]:
        plain = [{name: prompt[name] for name in _COLUMNS} for prompt in prompts]
        return {"train": Dataset.from_list(plain)}

    config = {key: value for key, value in task_config.items() if key != "dataset_path"}
    task = ConfigurableTask(config={**config, "custom_dataset": rows})
    state = random.getstate()
    random.seed(0)  # an instruction without a value draws one
    try:
        with without_bars():
            found = evaluate(
                answerer, {"ifeval": task}, bootstrap_iters=0, apply_chat_template=True
            )
    finally:
        random.setstate(state)
    return dict(found or {})


@contextmanager
def _lm_eval() -> Iterator[tuple[dict[str, Any], str, Sequence[str]]]:
    """lm-eval's task ``ifeval``, how it tells sentences, and the instructions it knows.

    Its module gets nltk's data from the network as it is imported. Where the data is not there, an
    untrained sentence tokenizer of the same kind stands in, and nothing is fetched.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for package in ("lm_eval", "immutabledict", "langdetect", "nltk"):
        require(package, "IFEval")
    import langdetect
    import lm_eval.tasks
    import nltk
    from lm_eval.tasks._yaml_loader import load_yaml
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    before = nltk.data.find, nltk.word_tokenize
    try:
        nltk.data.find("tokenizers/punkt_tab")
        trained = True
    except LookupError:
        trained = False
    seed = langdetect.DetectorFactory.seed
    langdetect.DetectorFactory.seed = 0  # it draws by chance otherwise
    try:
        if not trained:
            nltk.data.find = lambda name: name  # so that its import looks no further
        config = load_yaml(Path(lm_eval.tasks.__file__).parent / "ifeval" / "ifeval.yaml")
        from lm_eval.tasks.ifeval import instructions_registry, instructions_util

        nltk.data.find, told = before[0], instructions_util._get_sentence_tokenizer
        if not trained:
            nltk.word_tokenize = lambda text: [
                word
                for sentence in PunktSentenceTokenizer().tokenize(text)
                for word in before[1](sentence, preserve_line=True)
            ]
            instructions_util._get_sentence_tokenizer = PunktSentenceTokenizer
        try:
            sentences = "nltk's punkt_tab" if trained else _UNTRAINED
            yield config, sentences, tuple(instructions_registry.INSTRUCTION_DICT)
        finally:
            instructions_util._get_sentence_tokenizer = told
    finally:
        nltk.data.find, nltk.word_tokenize = before
        langdetect.DetectorFactory.seed = seed
