"""``prepare --executor``: the bytes of one pass, and parts that outlive failure.

Most tests make the parts in this process, in any order; those at the end start real workers.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.cli.main import main
from patchtrain.data import sharded
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.parts import Parts, held
from patchtrain.data.prepare import prepare
from patchtrain.data.sources import PARTS_RECORD, read_documents
from patchtrain.data.split_files import SplitWriter
from patchtrain.data.store import TokenStore
from patchtrain.errors import PatchtrainError, UsageError

WORDS = ["cell", "wall", "über", "細胞", "the", "<|endoftext|>", "a\nb", "12"]


def lines(count, seed=0):
    chosen = random.Random(seed)
    texts = (" ".join(chosen.choices(WORDS, k=chosen.randint(1, 30))) for _ in range(count))
    return "".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train("bpe", [" ".join(WORDS)] * 9, 300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of several kinds, some cut and some not."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        (folder / f"{number}.jsonl").write_text(lines(150, number))
    (folder / "b.txt").write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    (folder / "c.json").write_text(json.dumps([{"text": "in an array"}, {"text": None}]))
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def here(monkeypatch):
    """Makes parts in this process, last shard first; ``made`` are the shards that were made."""
    made = []

    def run_child(parts, engine, missing, bar):
        there = parts.there()
        for number in reversed(range(len(parts.shards))):
            if number not in there:
                parts.make(number)
                made.append(number)

    monkeypatch.setattr(sharded, "_run_child", run_child)
    return made


def contents(folder):
    """Every file of a store, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def parts_of(store):
    return sharded.parts_path(store)


@pytest.mark.parametrize(
    "options",
    [
        {"train_tokenizer": "bpe", "vocab_size": 300},
        {"train_tokenizer": "char", "vocab_size": 280, "document_separator": "\n"},
        {"train_tokenizer": "byte", "validation_fraction": 0.3},
        {"train_tokenizer": "byte", "validation_fraction": 0},
        {"train_tokenizer": "byte", "validation_fraction": 1e-12},
    ],
)
def test_all_bytes_are_those_of_one_pass(corpus, tmp_path, here, options):
    prepare([corpus], tmp_path / "plain", **options)
    plain = contents(tmp_path / "plain")
    for tasks in (1, 2, 13):
        store = prepare(
            [corpus], tmp_path / str(tasks), executor="local", tasks=tasks, **options
        )  # fmt: skip
        assert contents(store.path) == plain
        assert not parts_of(store.path).exists()
    assert len(here) > 10
    TokenStore.open(tmp_path / "13").verify()


@settings(max_examples=12, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab \né", min_size=1, max_size=30), min_size=3, max_size=25),
    tasks=st.integers(1, 9),
    fraction=st.sampled_from([0.0, 1e-15, 0.2]),
)
def test_any_texts(tmp_path_factory, texts, tasks, fraction):
    """Also where one document is held out by force, and equal ones stand in several shards."""
    folder = tmp_path_factory.mktemp("any")
    texts = ["first", "second", *texts, *texts[:3]]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"train_tokenizer": "byte", "validation_fraction": fraction}
    prepare([folder / "a.jsonl"], folder / "plain", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "_run_child", _make_all)
        prepare([folder / "a.jsonl"], folder / "cut", executor="local", tasks=tasks, **options)
    assert contents(folder / "cut") == contents(folder / "plain")


def _make_all(parts, engine, missing, bar):
    for number in range(len(parts.shards)):
        parts.make(number)


def test_the_same_command_gives_the_same_store(corpus, tmp_path):
    """Nothing in it says when it was made; who asks for it in Python still learns how long."""
    for name in ("one", "two"):
        store = prepare([corpus], tmp_path / name, train_tokenizer="byte")
        assert store.meta["made"]["seconds"] >= store.meta["made"]["encoding_seconds"] > 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert "seconds" not in TokenStore.open(tmp_path / "one").meta["made"]


def fail(corpus, out, tokenizer, monkeypatch, at, **options):
    """A call that ends after shards ``at`` and above were made."""

    def run_child(parts, engine, missing, bar):
        for number in range(at, len(parts.shards)):
            parts.make(number)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharded, "_run_child", run_child)
        with pytest.raises(KeyboardInterrupt):
            prepare([corpus], out, tokenizer=tokenizer, executor="local", tasks=6, **options)
    assert not out.exists()


def test_a_second_call_goes_on(corpus, tmp_path, tokenizer, here, monkeypatch, capsys):
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    out = tmp_path / "store"
    fail(corpus, out, tokenizer, monkeypatch, at=2)
    argv = ["prepare", str(corpus), "--out", str(out), "--tokenizer", str(tokenizer)]
    assert main([*argv, "--executor", "local", "--tasks", "6"]) == 0
    assert here == [1, 0]
    assert "4 of 6 shards are there already" in capsys.readouterr().err
    assert contents(out) == contents(tmp_path / "plain")


@pytest.mark.parametrize("how", ["bit", "short", "gone", "record", "no record"])
def test_a_damaged_part_is_made_anew(corpus, tmp_path, tokenizer, here, monkeypatch, how):
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    out = tmp_path / "store"
    fail(corpus, out, tokenizer, monkeypatch, at=0)
    part = parts_of(out) / "00003"
    file = part / "train.tokens.bin"
    data = file.read_bytes()
    if how == "bit":
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif how == "short":
        file.write_bytes(data[:-2])
    elif how == "gone":
        file.unlink()
    elif how == "record":
        (part / "part.json").write_text("{}")
    else:
        (part / "part.json").unlink()
    prepare([corpus], out, tokenizer=tokenizer, executor="local", tasks=6)
    assert here == [3]
    assert contents(out) == contents(tmp_path / "plain")


def test_a_part_damaged_before_the_merge_is_refused(corpus, tmp_path, tokenizer, monkeypatch):
    def run_child(parts, engine, missing, bar):
        _make_all(parts, engine, missing, bar)
        (parts.folder(2) / "train.offsets.bin").write_bytes(b"")

    monkeypatch.setattr(sharded, "_run_child", run_child)
    with pytest.raises(PatchtrainError, match=r"the part .*00002 is missing or damaged"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="local", tasks=6)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", ["input", "tokenizer", "fraction", "separator", "tasks"])
def test_parts_of_something_else_are_made_anew(
    corpus, tmp_path, tokenizer, here, monkeypatch, change
):
    text = tmp_path / "text"
    text.mkdir()
    for file in corpus.iterdir():
        (text / file.name).write_bytes(file.read_bytes())
    out, options, tasks = tmp_path / "store", {"tokenizer": tokenizer}, 6
    fail(text, out, tokenizer, monkeypatch, at=0)
    if change == "input":
        (text / "2.jsonl").write_text(lines(150, 2).replace("cell", "CELL"))
    elif change == "tokenizer":
        options["tokenizer"] = tmp_path / "other"
        tokenizers.train("bpe", ["cell wall"], 270).save_pretrained(tmp_path / "other")
    elif change == "fraction":
        options["validation_fraction"] = 0.3
    elif change == "separator":
        options["document_separator"] = "text"
    else:
        tasks = 3
    prepare([text], out, executor="local", tasks=tasks, **options)
    prepare([text], tmp_path / "plain", **options)
    assert contents(out) == contents(tmp_path / "plain")
    # Of changed input only the shards that hold it.
    assert len(here) == (2 if change == "input" else tasks)


def test_another_executor_goes_on_with_the_same_parts(corpus, tmp_path, tokenizer, monkeypatch):
    out = tmp_path / "store"
    fail(corpus, out, tokenizer, monkeypatch, at=0)
    log = slurm_tools(tmp_path, monkeypatch)
    prepare([corpus], out, tokenizer=tokenizer, executor="slurm", tasks=6)
    assert not (log / "sbatch.log").exists()


def test_a_bad_line_is_named_and_what_is_done_stays(corpus, tmp_path, tokenizer, here, capsys):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jsonl").write_text(lines(100) + "{oops\n" + lines(20))
    (text / "b.jsonl").write_text(lines(100))
    out = tmp_path / "store"
    argv = ["prepare", str(text), "--out", str(out), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "local", "--tasks", "6"]
    assert main(argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "a.jsonl: line 101 is not JSON" in error
    assert f"3 of 6 shards are done and stay in {parts_of(out)}: the same command goes on" in error
    assert not out.exists()
    (text / "a.jsonl").write_text(lines(100))
    assert main(argv) == 0
    prepare([text], tmp_path / "plain", tokenizer=tokenizer)
    assert contents(out) == contents(tmp_path / "plain")


def test_a_file_that_changes_or_goes_meanwhile(corpus, tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "a.jsonl"
    out = tmp_path / "store"
    options = {"tokenizer": tokenizer, "executor": "local", "tasks": 4}

    def with_one(action):
        def run_child(parts, engine, missing, bar):
            parts.make(0)
            action()
            parts.make(1)

        file.write_text(lines(100))
        monkeypatch.setattr(sharded, "_run_child", run_child)
        with pytest.raises(PatchtrainError) as caught:
            prepare([file], out, **options)
        assert not out.exists()
        return str(caught.value)

    assert "a.jsonl was changed while shards were tokenised" in with_one(
        lambda: file.write_text(lines(101))
    )
    error = with_one(file.unlink)
    assert "cannot read" in error
    assert "a.jsonl: No such file or directory; 1 of 4 shards are done" in error


def test_nothing_is_left_where_nothing_was_done(tmp_path, tokenizer, here):
    (tmp_path / "a.jsonl").write_text("{oops\n")
    with pytest.raises(PatchtrainError, match="line 1 is not JSON") as caught:
        prepare([tmp_path / "a.jsonl"], tmp_path / "s", tokenizer=tokenizer, executor="local")
    assert "are done" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_corpus_that_cannot_be_cut_takes_no_parts_along(tmp_path, tokenizer, here, monkeypatch):
    text, out = tmp_path / "text", tmp_path / "store"
    text.mkdir()
    (text / "a.jsonl").write_text(lines(100))
    fail(text, out, tokenizer, monkeypatch, at=3)
    bad = text / "b.txt"
    bad.write_bytes(b"some words\n" * 9000 + b"\xff")
    with pytest.raises(PatchtrainError, match=r"b\.txt is not UTF-8 text.* \(line 9,001\)"):
        prepare([text], out, tokenizer=tokenizer, executor="local", tasks=6)
    bad.unlink()
    prepare([text], out, tokenizer=tokenizer, executor="local", tasks=6)
    assert sorted(here) == [0, 1, 2]


def test_overwrite(corpus, tmp_path, tokenizer, here):
    for source in (corpus / "0.jsonl", corpus):
        prepare([source], tmp_path / "plain", tokenizer=tokenizer, overwrite=True)
        options = {"tokenizer": tokenizer, "executor": "local", "tasks": 3}
        with_parts = prepare([source], tmp_path / "s", overwrite=True, **options)
        assert contents(with_parts.path) == contents(tmp_path / "plain")
    with pytest.raises(UsageError, match="already exists; --overwrite replaces it"):
        prepare([corpus], tmp_path / "s", **options)


def test_a_full_disk(corpus, tmp_path, tokenizer, here, monkeypatch):
    def add(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SplitWriter, "add", add)
    with pytest.raises(PatchtrainError, match="the disk is full while writing"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="local")
    assert list(tmp_path.iterdir()) == []


def test_parts_are_no_source(corpus, tmp_path, tokenizer, monkeypatch, here):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.jsonl").write_text(lines(100))
    fail(text, text / "store", tokenizer, monkeypatch, at=0)
    assert (parts_of(text / "store") / PARTS_RECORD).is_file()
    assert len(list(read_documents([text], format="text"))) == 1
    prepare([text], text / "store", tokenizer=tokenizer, executor="local", tasks=6)
    assert here == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("- --format text --executor local", "standard input cannot be cut into shards"),
        ("hf:a/b --executor local", "dataset 'a/b' is streamed and cannot be cut"),
        ("a.txt --executor dask", "no executor 'dask'; known: local, ray, slurm"),
        ("a.txt --executor slrum", "no executor 'slrum'; did you mean 'slurm'?"),
        ("a.txt --executor local --workers 0", "--workers is 0, it must be at least 1"),
        ("a.txt --executor local --tasks -3", "--tasks is -3, it must be at least 1"),
        ("a.txt --executor local --executor-option time=1", "--executor-option is for slurm"),
        ("a.txt --workers 3", "--workers is for --executor, which is not given"),
        ("a.txt --tasks 3", "--tasks is for --executor"),
        ("a.txt --executor-option a=b", "--executor-option is for --executor"),
        ("a.txt --executor slurm --executor-option time", "write KEY=VALUE"),
        ("a.txt --executor slurm --executor-option Time=1", "one of sbatch's long options"),
        ("a.txt --executor slurm --executor-option array=1", "--tasks and --workers decide"),
        ("a.txt --executor slurm", "no sbatch here"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    assert main(["prepare", *words.split(), "--out", "s"]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("missing", ["datatrove", "ray"])
def test_without_the_engine(tmp_path, monkeypatch, missing):
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.setattr(
        sharded.importlib.util, "find_spec", lambda name: None if name == missing else True
    )
    extra = "scale" if missing == "datatrove" else "ray"
    with pytest.raises(UsageError, match=rf"pip install 'patchtrain\[{extra}\]'"):
        prepare([tmp_path / "a.txt"], tmp_path / "s", executor="ray")


def test_a_folder_that_is_no_folder_of_parts_stays(corpus, tmp_path, tokenizer):
    (tmp_path / "s.parts").mkdir()
    (tmp_path / "s.parts" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="holds something else; move it away"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="local")
    assert (tmp_path / "s.parts" / "mine").read_text() == "mine"


def test_two_commands_at_once(corpus, tmp_path, tokenizer):
    with (
        held(parts_of(tmp_path / "s")),
        pytest.raises(UsageError, match="another `patchtrain prepare` is working in"),
    ):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="local")
    assert parts_of(tmp_path / "s").exists()


# Real workers.


@pytest.mark.parametrize("workers", [1, 16])
def test_workers(corpus, tmp_path, tokenizer, workers):
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    store = prepare(
        [corpus], tmp_path / "s", tokenizer=tokenizer, executor="local", workers=workers, tasks=18
    )
    assert contents(store.path) == contents(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "s"]


def call(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "patchtrain", "prepare", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def worker_of(parts, shard):
    file = parts / "running" / f"{shard:05d}"
    return int(file.read_text() or 0) if file.is_file() else 0


def stalling(folder):
    """A corpus of two shards, of which the second never ends: a pipe that nobody writes to."""
    (folder / "a.jsonl").write_text(lines(100))
    os.mkfifo(folder / "b.jsonl")
    return folder / "a.jsonl", folder / "b.jsonl"


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


def meanwhile(action):
    """Call ``action`` in a thread, when ``prepare`` has begun in this one."""
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def stalled(out):
    """The worker on the second of two shards, once the first is done."""
    pid = wait_for(lambda: worker_of(parts_of(out), 1))
    wait_for(lambda: (parts_of(out) / "00000").is_dir())
    return pid


@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed(tmp_path, tokenizer, capsys, workers):
    sources, out = stalling(tmp_path), tmp_path / "store"
    argv = ["prepare", *map(str, sources), "--out", str(out), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "local", "--workers", str(workers), "--tasks", "2"]
    killer = meanwhile(lambda: os.kill(stalled(out), signal.SIGKILL))
    assert main(argv) == 1
    killer.join()
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the worker on shard 1 (" in error
    assert "was killed" in error
    assert "memory may have run out" in error
    assert "1 of 2 shards are done and stay in" in error
    assert not out.exists()


@needs_proc
def test_a_command_that_is_terminated(tmp_path, tokenizer, capsys):
    sources, out = stalling(tmp_path), tmp_path / "store"
    argv = ["prepare", *map(str, sources), "--out", str(out), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "local", "--workers", "2", "--tasks", "2"]
    found = []

    def terminate():
        found.append(stalled(out))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = meanwhile(terminate)
    assert main(argv) == 128 + signal.SIGTERM
    killer.join()
    wait_for(lambda: not is_alive(found[0]))
    assert not out.exists()
    assert Parts.open(parts_of(out)).check() == [0]  # what was done stays


@needs_proc
def test_a_command_that_is_killed_takes_its_workers_along(tmp_path, tokenizer):
    sources, out = stalling(tmp_path), tmp_path / "store"
    process = call(*sources, "--out", out, "--tokenizer", tokenizer, "--executor", "local",
                   "--workers", 2, "--tasks", 2)  # fmt: skip
    pid = stalled(out)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not is_alive(pid))
    assert not out.exists()
    assert Parts.open(parts_of(out)).check() == [0]


def test_ray(corpus, tmp_path, tokenizer):
    pytest.importorskip("ray")
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    store = prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="ray", tasks=3)
    assert contents(store.path) == contents(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "s"]


# Slurm: a few scripts that stand for its commands, and run a job array task by task.

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


def test_slurm(corpus, tmp_path, tokenizer, monkeypatch, capsys):
    log = slurm_tools(tmp_path, monkeypatch)
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    argv = ["prepare", str(corpus), "--out", str(tmp_path / "s"), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "slurm", "--workers", "5", "--tasks", "3"]
    for option in ("partition=cpu", "time=00:10:00", "mem-per-cpu=3G", "setup=export MARK=1"):
        argv += ["--executor-option", option]
    assert main(argv) == 0
    assert "submitted Slurm job 77" in capsys.readouterr().err
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    script = (log / "script").read_text()
    asked = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "#SBATCH --array=0-2%5", "#SBATCH --partition=cpu", "#SBATCH --time=00:10:00",
        "#SBATCH --mem-per-cpu=3G", "#SBATCH --cpus-per-task=1",
        "#SBATCH --job-name=patchtrain-prepare",
    } <= asked  # fmt: skip
    assert not any("qos" in line or "None" in line for line in asked)
    assert "export MARK=1" in script
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"' in script
    assert len((log / "sbatch.log").read_text().splitlines()) == 1
    assert not (log / "scancel.log").exists()


def test_slurm_jobs_that_end_without_a_word(corpus, tmp_path, tokenizer, monkeypatch):
    log = slurm_tools(tmp_path, monkeypatch)
    (log / "bin" / "srun").write_text("#!/bin/bash\nexit 9\n")
    with pytest.raises(PatchtrainError, match="Slurm job 77 ended before all shards"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="slurm", tasks=2,
                executor_options={"mem": "8G"})  # fmt: skip
    script = (log / "script").read_text()
    assert "#SBATCH --mem=8G" in script
    assert "mem-per-cpu" not in script


def test_slurm_with_a_shard_that_fails(tmp_path, tokenizer, monkeypatch):
    log = slurm_tools(tmp_path, monkeypatch)
    (tmp_path / "a.jsonl").write_text(lines(50) + "{oops\n")
    with pytest.raises(PatchtrainError, match=r"a\.jsonl: line 51 is not JSON.*1 of 2 shards"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "s", tokenizer=tokenizer, executor="slurm",
                tasks=2)  # fmt: skip
    assert (log / "scancel.log").read_text().split() == ["77"]
    assert not (tmp_path / "s").exists()


def test_slurm_refuses_the_job(corpus, tmp_path, tokenizer, monkeypatch):
    slurm_tools(tmp_path, monkeypatch)
    with pytest.raises(PatchtrainError, match=r"sbatch refused the job \(exit code 1\)"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="slurm", tasks=2,
                executor_options={"refused": "1"})  # fmt: skip


def test_slurm_scripts_hold_plain_paths(corpus, tmp_path, tokenizer, monkeypatch):
    slurm_tools(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="a Slurm job script cannot hold ' ' in the path"):
        prepare([corpus], tmp_path / "a store", tokenizer=tokenizer, executor="slurm")
