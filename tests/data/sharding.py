"""Lines of a corpus, what is in a store, and scripts that stand for Slurm's commands."""

import json
import os
import random

from patchtrain.data import sharded

WORDS = ["cell", "wall", "über", "細胞", "the", "<|endoftext|>", "a\nb", "12"]


def lines(count, seed=0):
    chosen = random.Random(seed)
    texts = (" ".join(chosen.choices(WORDS, k=chosen.randint(1, 30))) for _ in range(count))
    return "".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts))


def contents(folder):
    """Every file of a store, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def parts_of(store):
    return sharded.parts_path(store)


# They run a job array task by task, in the background.
SBATCH = """#!/bin/bash
echo "$@" >> {log}/sbatch.log
for last; do :; done
cp "$last" {log}/script
if grep -q refused=1 "$last"; then echo "sbatch: error: Invalid account" >&2; exit 1; fi
echo "Submitted batch job 77"
tasks=$(grep -oP '#SBATCH --array=0-\\K[0-9]+' "$last")
run() {{
    for task in $(seq 0 "$tasks"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost bash {log}/script > {log}/$task.out 2>&1
    done
    touch {log}/ended
}}
run > /dev/null 2>&1 &
"""
TOOLS = {
    "sbatch": SBATCH,
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
""",
    "scontrol": "#!/bin/bash\necho localhost\n",
    "squeue": """#!/bin/bash
[[ -e {log}/ended ]] || echo 77
""",
    "scancel": "#!/bin/bash\necho $@ >> {log}/scancel.log\n",
}


def slurm_tools(folder, monkeypatch):
    log = folder / "slurm"
    (log / "bin").mkdir(parents=True)
    for name, script in TOOLS.items():
        (log / "bin" / name).write_text(script.format(log=log))
        (log / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{log / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sharded, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sharded, "_ASK_SECONDS", 0.2)
    monkeypatch.setattr(sharded, "_LAG_SECONDS", 0.2)
    return log
