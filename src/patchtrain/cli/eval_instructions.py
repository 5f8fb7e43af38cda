"""``patchtrain eval --answers``, ``--ifeval`` and ``--mt-bench``: following instructions."""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchtrain.cli import results
from patchtrain.cli.parser import at_least_one
from patchtrain.errors import PatchtrainError, UsageError

_NEEDS = {
    "prompts": "ifeval",
    "questions": "mt_bench",
    "judge_url": "mt_bench",
    "judge_model": "mt_bench",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to ask, and who judges."""
    group = parser.add_argument_group("following instructions")
    group.add_argument(
        "--answers",
        nargs="+",
        metavar="FILE",
        help="the loss of the answers in instruction data, in any form that sft reads",
    )
    group.add_argument(
        "--ifeval", action="store_true", help="IFEval: instructions that a program can check"
    )
    group.add_argument(
        "--prompts", metavar="FILE", help="IFEval's prompts, JSON lines (default: from the hub)"
    )
    group.add_argument(
        "--mt-bench", action="store_true", help="MT-Bench: two turns each, graded by a judge"
    )
    group.add_argument(
        "--questions",
        metavar="FILE",
        help="MT-Bench's questions, JSON lines (default: from the hub)",
    )
    group.add_argument(
        "--judge-url",
        metavar="URL",
        help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1; its key, if any, is "
        "read from OPENAI_API_KEY",
    )
    group.add_argument("--judge-model", metavar="NAME", help="the judge's name there")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer (default: 1280 for IFEval, 1024 for MT-Bench)",
    )


def asked(args: argparse.Namespace) -> bool:
    """Whether any of it is wanted; an option that stands alone is told so in ``run``."""
    return bool(args.answers or args.ifeval or args.mt_bench) or any(
        getattr(args, name) is not None for name in _NEEDS
    )


def run(args: argparse.Namespace) -> Iterator[results.Named]:
    """Measure what was asked for, each a result of its own."""
    _check(args)
    from patchtrain import chat
    from patchtrain.evaluation.loading import find_model, load_model

    _, run_folder = find_model(args.run_folder)
    file = results.place(run_folder, args.out)
    if file is None and (args.ifeval or args.mt_bench):
        raise UsageError(
            "what the model answers is kept beside the result: say where with --out FILE, as "
            f"{args.run_folder} is no run"
        )
    parts = [
        (wanted, part)
        for wanted, part in (
            (args.answers, _answers),
            (args.ifeval, _ifeval),
            (args.mt_bench, _mt_bench),
        )
        if wanted
    ]
    measure = [prepare(args) for _, prepare in parts]  # what cannot be read costs no loading
    loaded = load_model(args.run_folder)
    template = chat.use_template(loaded.tokenizer)
    for each in measure:
        begun = time.monotonic()
        name, result = each(loaded, file)
        result = {
            "name": name,
            **result,
            "template": template,
            "model": {"path": str(loaded.path), "class": type(loaded.model).__name__},
            "device": str(loaded.model.device),
            **results.provenance(begun),
        }
        if not args.json:
            _show(args.run_folder, result)
        results.keep(file, "instructions", name, result, quiet=args.json)
        yield "instructions", name, result


def _check(args: argparse.Namespace) -> None:
    for name, needed in _NEEDS.items():
        if getattr(args, name) is not None and not getattr(args, needed):
            raise UsageError(f"--{name.replace('_', '-')} is for --{needed.replace('_', '-')}")
    if args.mt_bench and not (args.judge_url and args.judge_model):
        raise UsageError(
            "--mt-bench needs a judge: --judge-url URL (such as http://localhost:8000/v1) and "
            "--judge-model NAME"
        )
    at_least_one(args, "limit", "max_new_tokens", "batch_size")
    if args.name is not None:
        results.checked_name(args.name)
        if sum(map(bool, (args.answers, args.ifeval, args.mt_bench))) > 1:
            raise UsageError("--name names one result, and several are asked for")


def _folder(file: Path | None, kind: str) -> Path:
    """Where the answers of one kind lie: beside the file of results, named after it."""
    assert file is not None
    name = kind if file.name == "evaluation.json" else f"{file.stem}-{kind}"
    if (folder := file.parent / name).is_symlink():
        raise UsageError(f"{folder} is a link to another folder, so nothing is written to it")
    return folder


def _answers(args: argparse.Namespace) -> Any:
    from patchtrain.data.conversations import read_conversations

    data = read_conversations(args.answers)
    plain = re.sub(r"[^\w.-]+", "-", Path(args.answers[0]).name).lstrip(".-")
    name = results.checked_name(args.name or plain or "answers")

    def measure(loaded: Any, file: Path | None) -> tuple[str, dict[str, Any]]:
        from patchtrain.evaluation.answer_loss import answer_loss, answers_result
        from patchtrain.evaluation.evaluate import choose_window

        context = choose_window(loaded, args.context_length, None).context_length
        rows = data.rows[: args.limit]
        with results.progress(len(rows), "conversations", quiet=args.quiet) as advance:
            loss = answer_loss(loaded.model, loaded.tokenizer, rows, context, advance)
        if not math.isfinite(loss.nats):
            raise PatchtrainError(f"the loss of {loaded.path} is {loss.nats}: the model is broken")
        return name, answers_result(loss, args.answers, context)

    return measure


def _ifeval(args: argparse.Namespace) -> Any:
    from patchtrain.evaluation import ifeval

    prompts = ifeval.read_prompts(args.prompts, args.limit)
    name = args.name or "ifeval"

    def measure(loaded: Any, file: Path | None) -> tuple[str, dict[str, Any]]:
        from patchtrain.evaluation.kept_lines import KeptLines
        from patchtrain.files import write_text

        folder = _folder(file, "ifeval")
        kept = KeptLines(folder / "answers.jsonl")
        with results.progress(len(prompts), "prompts", "answered", args.quiet) as advance:
            result, samples = ifeval.ifeval(
                loaded,
                prompts,
                kept,
                args.max_new_tokens or ifeval.MAX_NEW_TOKENS,
                args.batch_size,
                advance,
            )
        checked = folder / f"{name}.jsonl"
        write_text(checked, "".join(json.dumps(sample) + "\n" for sample in samples))
        return name, {**result, "answers_file": str(checked.relative_to(folder.parent))}

    return measure


def _mt_bench(args: argparse.Namespace) -> Any:
    from patchtrain.evaluation import mt_bench
    from patchtrain.evaluation.judge import Judge

    questions = mt_bench.read_questions(args.questions, args.limit)
    judge = Judge(args.judge_url, args.judge_model)
    most, total = args.max_new_tokens or mt_bench.MAX_NEW_TOKENS, mt_bench.TURNS * len(questions)

    def measure(loaded: Any, file: Path | None) -> tuple[str, dict[str, Any]]:
        from patchtrain.evaluation.kept_lines import KeptLines

        folder = _folder(file, "mt_bench")
        kept, judged = (KeptLines(folder / f"{name}.jsonl") for name in ("answers", "judgments"))
        with results.progress(total, "answers", "written", args.quiet) as advance:
            answers = mt_bench.write_answers(loaded, questions, kept, most, advance)
        with results.progress(total, "answers", "judged", args.quiet) as advance:
            ratings = mt_bench.judge_answers(judge, questions, answers, judged, advance)
        written = [row for rows in answers.values() for row in rows]
        result = {
            **mt_bench.summary(questions, ratings),
            "judge": {
                "url": judge.url,
                "model": judge.model,
                "temperature": judge.temperature,
            },
            "max_new_tokens": most,
            "not_ended": sum(not row["stopped"] for row in written),
            "prompts_cut": sum(row["prompt_cut"] > 0 for row in written),
            "answers_file": str(kept.file.relative_to(folder.parent)),
            "judgments_file": str(judged.file.relative_to(folder.parent)),
        }
        return args.name or "mt-bench", result

    return measure


def _show(run_folder: str, result: dict[str, Any]) -> None:
    print(run_folder)
    said = lines(result)
    width = max(len(label) for label, _ in said) + 2
    for label, value in said:
        print(f"  {label:{width}}{value}")


def lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What a result says, as label and value."""
    if result["measure"] == "answers":
        return [
            ("loss", f"{result['loss']:.4f} nats per token of the answers "
                     f"(standard error {result['loss_stderr']:.4f})"),
            ("scored", f"{result['scored']}: {result['targets']:,} tokens"),
        ]  # fmt: skip
    if result["measure"] == "ifeval":
        shown = [
            (f"{level}s followed, {kind}", f"{result[f'{level}_{kind}']:.1%} "
             f"(standard error {result[f'{level}_{kind}_stderr']:.1%})")
            for level in ("prompt", "instruction") for kind in ("strict", "loose")
        ]  # fmt: skip
        scored = (
            f"{result['prompts']:,} prompts, {result['instructions']:,} instructions; "
            f"{result['not_ended']:,} answers did not end in {result['max_new_tokens']:,} tokens"
        )
        return [*shown, ("scored", scored), ("sentences", result["sentences"])]
    shown = [("rating, 1 to 10", _rating(result))]
    shown += [(f"turn {turn}", _rating(found)) for turn, found in result["turns"].items()]
    shown += [(name, _rating(found)) for name, found in result["categories"].items()]
    scored = f"{result['rated']:,} answers to {result['questions']:,} questions"
    if result["unrated"]:
        scored += f"; the judge gave no rating to {result['unrated']:,} more"
    return [*shown, ("judge", f"{result['judge']['model']}: {scored}")]


def _rating(found: dict[str, Any]) -> str:
    if found["score"] is None:
        return "none"
    return f"{found['score']:.2f} (standard error {found['score_stderr']:.2f})"
