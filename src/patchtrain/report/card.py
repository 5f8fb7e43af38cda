"""The model card of a run: what the Hub shows of a model, filled in from the run's own record.

YAML first, then Markdown; every number is computed from the run's folder. Where the text stands in
a file that its user may have edited is the matter of ``card_file.py``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchtrain.errors import one_line
from patchtrain.report.formats import (
    accuracy,
    count,
    duration,
    flops,
    is_number,
    number,
    percent,
    significant,
)
from patchtrain.report.summary import RunSummary
from patchtrain.report.words import describe, stage_tokens
from patchtrain.runs import pretrained_name

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_CITATION = """\
@inproceedings{shao2025patch,
  title     = {Beyond Next Token Prediction: Patch-Level Training for Large Language Models},
  author    = {Shao, Chenze and Meng, Fandong and Zhou, Jie},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2407.12665}
}

@article{peng2026superposition,
  title  = {Efficient Pre-Training with Token Superposition},
  author = {Peng and Gigant and Quesnelle},
  year   = {2026},
  url    = {https://arxiv.org/abs/2605.06546}
}"""


@dataclass(frozen=True)
class Prices:
    """What a run's device-hours and energy are counted with; None is not asked for."""

    per_device_hour: float | None = None
    watts: float | None = None


def front_matter(run: RunSummary) -> str:
    """The YAML at the top, between its two lines of dashes."""
    from huggingface_hub import ModelCardData

    sizes = {stage.patch_size for stage in run.stages}
    tags = ["patchtrain", "causal-lm"]
    tags += ["patch-level-training"] if sizes - {1} else []
    tags += ["token-superposition"] if run.plan.get("hold") == "compute" and sizes - {1} else []
    tags += ["instruction-tuned"] if run.part("tuning") else []
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
        datasets=_datasets(run) or None,
        base_model=_base_model(run),
        model_name=run.name,
        eval_results=_eval_results(run) or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def body(run: RunSummary, model: Path, prices: Prices = Prices()) -> str:
    """The text below the YAML, from the heading of what it is to the citation."""
    parts = [
        _what(run),
        _use(run, model),
        _training(run),
        _data(run),
        _cost(run, prices),
        _results(run),
        _limits(run),
        _making(run),
        f"## Citation\n\nThe method, and its successor:\n\n```bibtex\n{_CITATION}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _what(run: RunSummary) -> str:
    ordinary = (
        "It is a plain model of its architecture: it reads and writes single tokens, and nothing "
        "of patches is left in it."
    )
    sentences = [plain(sentence) for sentence in describe(run)]
    return " ".join([*sentences, ordinary]) + (
        "\n\nMade with patchtrain by [patch-level training](https://arxiv.org/abs/2407.12665): "
        "first on patches of several tokens at once, then on single tokens."
        if any(stage.patch_size > 1 for stage in run.stages)
        else ""
    )


def _use(run: RunSummary, model: Path) -> str:
    path = json.dumps(model.as_posix())
    if run.part("tuning"):
        asked = '[{"role": "user", "content": "What is a cell?"}]'
        code = (
            f"from transformers import pipeline\n\n"
            f'answer = pipeline("text-generation", model={path})\n'
            f"print(answer({asked}, max_new_tokens=40)[0])"
        )
    else:
        prompt = run.samples[0]["prompt"] if run.samples else "The "
        code = (
            f"from transformers import pipeline\n\n"
            f'generate = pipeline("text-generation", model={path})\n'
            f'print(generate({json.dumps(prompt)}, max_new_tokens=40)[0]["generated_text"])'
        )
    return f"## Use\n\n```python\n{code}\n```"


def _training(run: RunSummary) -> str:
    rows = []
    for stage, values in zip(run.stages, run.plan.get("stages") or [], strict=False):
        rows.append(
            [
                stage.name,
                str(stage.patch_size),
                count(stage.planned_steps),
                count(stage_tokens(run, stage.index)),
                count(values.get("tokens_per_step")),
                significant(max(stage.learning_rates)) if stage.learning_rates else "",
            ]
        )
    if not rows:
        return ""
    head = ["stage", "tokens a patch", "steps", "tokens", "tokens a step", "highest learning rate"]
    facts = [
        (name, run.plan.get(key))
        for name, key in (
            ("preset", "preset"),
            ("context length", "context_length"),
            ("schedule", "schedule"),
            ("optimizer at the switch", "optimizer_at_switch"),
            ("documents", "documents"),
        )
    ]
    facts += [("seed", run.info.get("seed"))]
    told = ", ".join(f"{name} {plain(value)}" for name, value in facts if value is not None)
    recipe = ""
    if run.recipe:
        # Longer than any fence that a recipe may hold.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", run.recipe)), default=0))
        recipe = (
            "\n\n<details><summary>The recipe as resolved</summary>\n\n"
            f"{fence}yaml\n{run.recipe.strip()}\n{fence}\n\n</details>"
        )
    return f"## Training\n\n{_table(head, rows)}\n\n{told[:1].upper()}{told[1:]}.{recipe}"


def _data(run: RunSummary) -> str:
    lines = []
    if tuning := run.part("tuning"):
        identity = tuning.get("identity")
        identity = identity if isinstance(identity, dict) else {}
        files = [Path(name).name for name in _files(tuning)]
        lines += [
            f"- {count(tuning.get('conversations'))} conversations, of which "
            f"{count(tuning.get('held_out_conversations'))} were held out"
            + (f": {plain(', '.join(files))}" if files else ""),
            f"- hash of the conversations: `{_code(identity.get('data'))}`",
            f"- chat template: {plain(tuning.get('template'))}",
        ]
    store = run.part("store")
    if is_number(store.get("train_tokens")):
        read, there = run.total("tokens"), float(store["train_tokens"])
        epochs = f" ({number(read / there, 2)} epochs)" if read and there else ""
        name = Path(str(store.get("path") or "")).name
        sources = [str(record.get("source")) for record in _sources(run)]
        lines += [
            f"- token store `{_code(name)}`"
            + (f", made from {plain(', '.join(sources))}" if sources else ""),
            f"- {count(there)} tokens to train on, {count(store.get('validation_tokens'))} held "
            f"out, a vocabulary of {count(store.get('vocab_size'))}",
            f"- {count(read)} tokens read{epochs}",
            f"- hash of tokens and tokenizer: `{_code(store.get('fingerprint'))}`",
        ]
    return "## Data\n\n" + "\n".join(lines) if lines else ""


def _cost(run: RunSummary, prices: Prices) -> str:
    seconds, machine = run.total("seconds"), run.part("machine")
    if seconds is None:
        return ""
    processes = run.plan.get("processes")
    devices = int(processes) if is_number(processes) and processes > 1 else 1
    where = plain(machine.get("device") or "unknown")
    if where == "cpu" and is_number(machine.get("cores")):
        where = f"CPU, {count(machine['cores'])} cores"
    many = f"{devices} x " if devices > 1 else ""
    hours = seconds * devices / 3600
    lines = [
        f"- compute: {flops(run.total('flops'))}",
        f"- training time: {duration(seconds)} on {many}{where}",
        f"- device-hours: {significant(hours)}",
    ]
    ratio = run.plan.get("compute_ratio")
    if is_number(ratio) and not run.token_level:
        lines.append(
            f"- {percent(ratio)} of the compute of token-level training on the same tokens"
        )
    if prices.per_device_hour is not None:
        lines.append(
            f"- money: {hours * prices.per_device_hour:,.2f}, at {prices.per_device_hour:g} a "
            f"device-hour"
        )
    if prices.watts is not None:
        lines.append(
            f"- energy: {significant(hours * prices.watts / 1000)} kWh, at {prices.watts:g} W a "
            f"device"
        )
    return "## Cost\n\n" + "\n".join(lines)


def _results(run: RunSummary) -> str:
    rows: list[list[str]] = []
    result = run.result
    if is_number(result.get("loss")):
        rows.append(_text_row("held-out text, at the end of the run", result))
    for name, values in run.measured("text").items():
        rows.append(_text_row(plain(name), values))
    parts = []
    if rows:
        head = ["text", "bits per byte", "loss (nats a token)", "perplexity", "tokens",
                "context, stride"]  # fmt: skip
        parts.append(_table(head, rows))
    scores = []
    for name, values in run.measured("tasks").items():
        scores.append([plain(name), accuracy(values.get("score"), values.get("score_stderr")),
                       accuracy(values.get("chance")), count(values.get("documents"))])  # fmt: skip
    if scores:
        parts.append(_table(["zero-shot task", "accuracy, %", "chance, %", "documents"], scores))
    told = [_instruction(name, values) for name, values in run.measured("instructions").items()]
    told = [line for line in told if line]
    if told:
        parts.append("\n".join(told))
    return "## Results\n\n" + "\n\n".join(parts) if parts else ""


def _text_row(name: str, values: dict[str, Any]) -> list[str]:
    window = f"{count(values.get('context_length'))}, {count(values.get('stride'))}"
    return [
        name,
        number(values.get("bits_per_byte"), 4),
        number(values.get("loss"), 4),
        number(values.get("perplexity"), 2),
        count(values.get("targets")),
        window,
    ]


def _instruction(name: str, values: dict[str, Any]) -> str:
    kind = values.get("measure")
    if kind == "answers":
        before = values.get("before")
        was = before.get("loss") if isinstance(before, dict) else None
        came = f", {number(was, 4)} before tuning" if is_number(was) else ""
        return f"- answers ({plain(name)}): {number(values.get('loss'), 4)} nats a token{came}"
    if kind == "ifeval":
        strict = accuracy(values.get("prompt_strict"), values.get("prompt_strict_stderr"))
        return f"- IFEval ({plain(name)}): {strict} % of prompts followed, strict"
    if kind == "mt_bench":
        return f"- MT-Bench ({plain(name)}): {number(values.get('score'), 2)} of 10"
    return ""


def _limits(run: RunSummary) -> str:
    lines = []
    context = run.plan.get("context_length")
    if is_number(context):
        lines.append(f"It was trained with a context of {count(context)} tokens, and no longer one "
                     f"was tried.")  # fmt: skip
    if run.part("tuning"):
        lines.append("It was tuned to answer, and nothing was done to make answers safe or true.")
    else:
        lines.append("It continues text and was not tuned to answer; what it writes may be wrong, "
                     "and as offensive as what it read.")  # fmt: skip
    if run.result:
        lines.append("Held-out text is of the same corpus as the training text: other text will be "
                     "harder.")  # fmt: skip
    lines.append(f"One run, one seed ({plain(run.info.get('seed'))}): another seed ends elsewhere.")
    if run.status != "finished":
        lines.append(f"The run did not finish (its status is {plain(run.status)}).")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _making(run: RunSummary) -> str:
    versions = run.part("versions")
    told = ", ".join(f"{plain(name)} {plain(value)}" for name, value in versions.items())
    lines = [f"- versions: {told}"] if told else []
    for key in ("started", "finished"):
        if run.info.get(key):
            lines.append(f"- {key}: {plain(run.info[key])}")
    command = run.info.get("command")
    shown = f"\n\n```text\n{one_line(command, 1000)}\n```" if command else ""
    return "## How it was made\n\n" + "\n".join(lines) + shown if lines or shown else ""


def _eval_results(run: RunSummary) -> list[Any]:
    """What was measured, for the Hub's model index."""
    from huggingface_hub import EvalResult

    def result(kind: str, dataset: str, metric: str, name: str, value: Any) -> list[Any]:
        if not is_number(value):
            return []
        return [
            EvalResult(
                task_type="text-generation",
                dataset_type=kind,
                dataset_name=dataset,
                dataset_config=dataset,  # results of one type and configuration become one
                metric_type=metric,
                metric_name=name,
                metric_value=round(float(value), 6),
            )
        ]

    found = []
    texts = dict(run.measured("text"))
    if "validation" not in texts and run.result:
        texts = {"validation": run.result, **texts}
    for name, values in texts.items():
        place = one_line(name, 80)
        found += result(
            "text", place, "bits_per_byte", "bits per byte", values.get("bits_per_byte")
        )
        found += result("text", place, "perplexity", "perplexity", values.get("perplexity"))
    for name, values in run.measured("tasks").items():
        place = one_line(name, 80)
        found += result(place, place, "accuracy", "zero-shot accuracy", values.get("score"))
    for name, values in run.measured("instructions").items():
        if values.get("measure") == "ifeval":
            value = values.get("prompt_strict")
            found += result("ifeval", one_line(name, 80), "accuracy", "prompts, strict", value)
    return found


def _sources(run: RunSummary) -> list[dict[str, Any]]:
    """What the store was made from, as named then; empty where the store is gone."""
    file = Path(str(run.part("store").get("path") or "")) / "store.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        same = record["fingerprint"] == run.part("store").get("fingerprint")
        return [dict(source) for source in record["sources"]] if same else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _datasets(run: RunSummary) -> list[str]:
    """Data sets of the Hub that it was trained on."""
    names = [str(source.get("source")) for source in _sources(run)] + _files(run.part("tuning"))
    found = (name.removeprefix("hf:") for name in names if name.startswith("hf:"))
    return sorted({name for name in found if _HUB_NAME.fullmatch(name)})


def _files(tuning: dict[str, Any]) -> list[str]:
    """What a tuning was told to read; an earlier version did not keep it."""
    files = tuning.get("files")
    return [str(name) for name in files] if isinstance(files, list) else []


def _base_model(run: RunSummary) -> str | None:
    """The model of the Hub it went on from; a folder's name means nothing there."""
    name = pretrained_name(run.recipe or "")
    return name if name and _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: object) -> str:
    """A value from a file as text of Markdown: on one line, with nothing in it that is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(value, 300))


def _code(value: object) -> str:
    return one_line(value, 120).replace("`", "'")
