"""Zero-shot accuracy of a real model, and the same documents through lm-eval's own command line.

The model is a plain Hugging Face folder, or a GGUF file that is turned into one first (with the
packages gguf, sentencepiece and protobuf); the data are local files, see docs/zero-shot.md. First
`patchtrain.evaluation.zero_shot` scores the tasks; then both it and `python -m lm_eval`, in a
process of its own, score the first few documents of each, and every metric is compared.

    python benchmarks/zero_shot.py --model SmolLM2-135M-Instruct.Q4_1.gguf --task-data DATA PACKAGE
    python benchmarks/zero_shot.py --model runs/small/model --task-data DATA --tasks small
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import about, write

from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.evaluation.zero_shot import TASK_FILES, evaluate_tasks, load_tasks, task_names

TASKS = "blimp,sciq,piqa,lambada,arc_easy,hellaswag,winogrande"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a folder, or a GGUF file")
    parser.add_argument("--task-data", nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--tasks", default=TASKS, metavar="NAME,...", help="default: %(default)s")
    parser.add_argument("--limit", type=int, default=200, help="documents of each task")
    parser.add_argument("--blimp-limit", type=int, default=100, help="of each paradigm of BLiMP")
    parser.add_argument("--start-token", metavar="TOKEN", help="what a text without context "
                        "begins with (default: the BOS token)")  # fmt: skip
    parser.add_argument("--bos-limit", type=int, default=30, metavar="N", help="documents of each "
                        "paradigm of BLiMP begun with BOS too, with --start-token")  # fmt: skip
    parser.add_argument("--check-limit", type=int, default=5, metavar="N", help="documents of "
                        "each task by the command line of lm-eval too; 0: none")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("results/zero_shot.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = task_names(args.tasks)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model
        if args.model.is_file():
            folder = converted(args.model, Path(temporary) / "model")
        loaded = load_model(folder, "cpu")
        rows = []
        for name in names:
            limit = args.blimp_limit if name == "blimp" else args.limit
            rows.append(scored(loaded, name, limit, args.start_token, args))
        if args.start_token and "blimp" in names:
            rows.append(scored(loaded, "blimp", args.bos_limit, None, args))
        checks = []
        if args.check_limit:
            checks = compared(loaded, names, args, Path(temporary))
    result = about("zero_shot", "model, documents and prompts of both")
    result["versions"]["lm_eval"] = version("lm_eval")
    result["settings"] = {
        "model": args.model.name, "parameters": loaded.model.num_parameters(),
        "dtype": str(loaded.model.dtype).removeprefix("torch."), "shots": 0,
        "batch_size": args.batch_size, "threads": args.threads, "check_limit": args.check_limit,
    }  # fmt: skip
    result["rows"], result["checks"] = rows, checks
    write(args.out, result)


def converted(gguf: Path, folder: Path) -> Path:
    """The model and tokenizer of a GGUF file as a plain folder, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    quantized = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    return folder


def scored(
    loaded: LoadedModel, name: str, limit: int, start_token: str | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Our result of one task, with its time."""
    begun = time.monotonic()
    tasks = load_tasks([name], args.task_data)
    (row,) = evaluate_tasks(loaded, tasks, limit, args.batch_size, start_token=start_token)
    row["seconds"] = round(time.monotonic() - begun, 1)
    del row["data"]  # folders of this machine
    print(f"{name}: {row['score']:.4f} ± {row['score_stderr'] or math.nan:.4f}, "
          f"{row['documents']:,} documents, {row['seconds']} s", flush=True)  # fmt: skip
    return row


def compared(
    loaded: LoadedModel, names: tuple[str, ...], args: argparse.Namespace, temporary: Path
) -> list[dict[str, Any]]:
    """Every metric of every task, parts of groups too, by us and by lm-eval's command line."""
    tasks, start = load_tasks(names, args.task_data), args.start_token
    ours = evaluate_tasks(loaded, tasks, args.check_limit, args.batch_size, start_token=start)
    prefix = loaded.tokenizer.convert_tokens_to_ids(start) if start else loaded.start_token_id
    options = {
        "model": "hf",
        "model_args": f"pretrained={loaded.path},prefix_token_id={prefix}",
        "tasks": ",".join(names),
        "include_path": str(TASK_FILES),
        "metadata": json.dumps({"task_data": list(map(str, args.task_data))}),
        "limit": str(args.check_limit),
        "device": "cpu",
        "batch_size": str(args.batch_size),
        "output_path": str(temporary / "results"),
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    subprocess.run([sys.executable, "-m", "lm_eval", "run", *words], check=True)
    (file,) = (temporary / "results").glob("**/results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))["results"]
    rows = []
    for result in ours:
        for task, values in {result["task"]: result, **result.get("subtasks", {})}.items():
            for metric, value in values["lm_eval"].items():
                key = metric if "," in metric else f"{metric},none"
                rows.append({"task": task, "metric": metric, "documents": values["documents"],
                             "here": value, "command_line": theirs[task][key]})  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
