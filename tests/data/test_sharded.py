"""``prepare --executor``: the bytes of one pass, and parts that outlive failure.

The parts are made in this process, in any order; ``test_workers.py`` starts real workers.
"""

import errno
import json
import sys
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.cli.main import main
from patchtrain.data import sharded
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.parts import held
from patchtrain.data.prepare import prepare
from patchtrain.data.sources import PARTS_RECORD, read_documents
from patchtrain.data.split_files import SplitWriter
from patchtrain.data.store import TokenStore
from patchtrain.errors import PatchtrainError, UsageError
from tests.data.sharding import contents, lines, parts_of, slurm_tools


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
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "ray":
        monkeypatch.setitem(sys.modules, "datatrove", ModuleType("datatrove"))
    with pytest.raises(UsageError, match=r"--executor .*pip install 'patchtrain\[cluster\]'"):
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
