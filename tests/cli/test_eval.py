"""``patchtrain eval`` as a person calls it, on a store and on files."""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard

from patchtrain.cli import eval as eval_command
from patchtrain.data.store import StoreWriter
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.loading import load_model
from patchtrain.evaluation.perplexity import blocks_loss, documents_loss, stream_loss
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.tiny import (
    CONTEXT,
    TEXT,
    save_tiny_model,
    save_tiny_run,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = [TEXT, "Le café est fermé.", "A cell divides. " * 9]


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    eval_command.add_arguments(parser)
    return eval_command.run(parser.parse_args([str(word) for word in words]))


def result_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert call(*words, "--json") == 0
    (kind,) = json.loads(capsys.readouterr().out).values()
    (values,) = kind.values()
    return dict(values)


def write_store(folder: Path, tokenizer: Any, documents: list[str]) -> Path:
    folder.mkdir()
    with StoreWriter(folder, tokenizer) as writer:
        for split in ("train", "validation"):
            for text in documents:
                ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
                size = len(text.encode()), len(text.split())
                writer.add(split, np.array(ids), [len(ids)], *size)
        writer.finish({})
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "store", tiny_tokenizer(), DOCUMENTS)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", store)


def test_validation_split_is_one_stream(
    run: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = result_of(capsys, run)
    tokenizer = tiny_tokenizer()
    stream = [
        token
        for text in DOCUMENTS
        for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ]
    # The context of training, not the model's own limit, and a stride of as much.
    assert (result["context_length"], result["stride"]) == (CONTEXT // 2, CONTEXT // 2)
    model = load_model(run).model
    nats, targets = stream_loss(model, np.array(stream), CONTEXT // 2, CONTEXT // 2)
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert result["targets"] == targets == len(stream) - 1
    assert result["nats"] == pytest.approx(nats, rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert result["words"] == sum(len(text.split()) for text in DOCUMENTS)
    assert "validation split" in result["scored"]
    assert RunFolder(run).evaluation()["text"]["validation"] == result


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS), encoding="utf-8")
    return file


def test_each_way_of_reading_documents(
    run: Path, store: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a store and of the same text in a file."""
    tokenizer, model = tiny_tokenizer(), load_model(run).model
    T, end = CONTEXT // 2, tokenizer.eos_token_id
    texts = [tokenizer(text)["input_ids"] for text in DOCUMENTS]
    size = sum(len(text.encode()) for text in DOCUMENTS)
    ended = [[*ids, end] for ids in texts]

    def check(result: dict[str, Any], expected: tuple[float, int], utf8_bytes: int) -> None:
        assert result["nats"] == pytest.approx(expected[0], rel=1e-5)
        assert (result["targets"], result["utf8_bytes"]) == (expected[1], utf8_bytes)
        assert sum(b["targets"] for b in result["by_position"]) == expected[1]
        assert result["by_document"]["documents"] == len(DOCUMENTS)

    for documents, of_store, of_text in (
        ("separate", documents_loss(model, ended, end, T), documents_loss(model, texts, end, T)),
        ("mixed", *(stream_loss(model, np.concatenate(ended), T),) * 2),
    ):
        words = ("--documents", documents, "--name", documents)
        check(result_of(capsys, run, *words), of_store, size)
        check(result_of(capsys, run, *words, "--text", lines), of_text, size)
    for words, stream in (((), np.concatenate(ended)), (("--text", lines), np.concatenate(texts))):
        result = result_of(capsys, run, "--documents", "blocks", *words, "--name", "b")
        expected = blocks_loss(model, stream, T)
        check(result, expected, round(size * expected[1] / len(stream)))
        # As during training: nats per token over the bytes that a token stands for.
        per_token = expected[0] / expected[1] / math.log(2)
        assert result["bits_per_byte"] == pytest.approx(per_token * len(stream) / size, rel=2e-3)
        assert "cut in blocks, each on its own" in result["scored"]


def test_bits_per_byte_of_a_document_are_those_of_the_document_alone(
    run: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    each = result_of(capsys, run, "--text", lines)["by_document"]["each"]
    for text, bits in zip(DOCUMENTS, each, strict=True):
        (tmp_path / "one.txt").write_text(text, encoding="utf-8")
        alone = result_of(capsys, run, "--text", tmp_path / "one.txt")
        assert bits == pytest.approx(alone["bits_per_byte"], abs=1e-5)
    store = result_of(capsys, run, "--documents", "separate", "--max-tokens", 100, "--name", "part")
    assert store["by_document"]["documents"] == 2
    assert store["targets"] == 100


def test_the_screen_shows_positions_and_documents(
    run: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--text", lines) == 0
    out = capsys.readouterr().out
    assert re.search(r"by context +1: \d\.\d+, 2: .*5-8: \d\.\d+, 9-16: \d\.\d+", out)
    assert re.search(r"by document +3 documents: mean \d\.\d+ bits per byte, the middle half", out)
    assert re.search(
        r"best \d\.\d+ \(document \d\), worst \d\.\d+ \(document \d, counted from", out
    )


def test_text_output_states_the_window(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "--stride", 16, "--name", "wide") == 0
    out = capsys.readouterr().out
    assert "context length 16, stride 16" in out
    assert "per word" in out
    assert "one stream" in out
    assert f"written to    {run / 'evaluation.json'}" in out
    assert RunFolder(run).evaluation()["text"]["wide"]["stride"] == 16


def test_max_tokens_counts_only_the_text_scored(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    first = len(tokenizer(DOCUMENTS[0])["input_ids"]) + 1
    result = result_of(capsys, run, "--max-tokens", first, "--name", "part")
    assert result["targets"] == first - 1
    assert result["utf8_bytes"] == len(DOCUMENTS[0].encode())
    assert result["words"] == len(DOCUMENTS[0].split())
    assert f"the first {first:,} of" in result["scored"]


def test_the_same_documents_in_every_format_score_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS)
    plain, packed, table = (tmp_path / n for n in ("a.jsonl", "a.jsonl.zst", "a.parquet"))
    plain.write_text(lines, encoding="utf-8")
    packed.write_bytes(zstandard.compress(lines.encode()))
    pq.write_table(pa.table({"body": DOCUMENTS}), table)
    texts = [tmp_path / f"{number}.txt" for number in range(len(DOCUMENTS))]
    for path, text in zip(texts, DOCUMENTS, strict=True):
        path.write_text(text, encoding="utf-8")

    whole = result_of(capsys, run, "--text", *texts, "--name", "x")
    tokens = sum(len(tiny_tokenizer()(text)["input_ids"]) for text in DOCUMENTS)
    # Every token is scored: the start token that precedes a document gives its first one.
    assert whole["targets"] == tokens
    assert whole["utf8_bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert whole["scored"].startswith("3 documents of")
    for path in (plain, packed, table):
        values = result_of(capsys, run, "--text", path, "--text-column", "body", "--name", "x")
        assert values["nats"] == pytest.approx(whole["nats"], rel=1e-6)
        assert values["targets"] == whole["targets"]


def test_a_plain_model_folder_needs_text_and_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_model(tmp_path / "model")
    before = sorted(model.iterdir())
    text = tmp_path / "book.txt"
    text.write_text(TEXT, encoding="utf-8")
    assert result_of(capsys, model, "--text", text)["context_length"] == CONTEXT
    assert sorted(model.iterdir()) == before
    with pytest.raises(UsageError, match="--text FILE"):
        call(model)


def test_a_model_without_a_run_is_recorded_where_out_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, text, out = save_tiny_model(tmp_path / "model"), tmp_path / "a.txt", tmp_path / "o.json"
    text.write_text(TEXT, encoding="utf-8")
    result = result_of(capsys, model, "--text", text, "--out", out)
    assert read_evaluation(out) == {"text": {"a.txt": result}}
    for place, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "o.json", f"there is no folder {tmp_path / 'none'}"),
    ):
        with pytest.raises(UsageError, match=message):
            call(model, "--text", text, "--out", place)


def test_a_name_that_does_not_tell_its_format(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "LICENSE"
    text.write_text(TEXT, encoding="utf-8")
    with pytest.raises(UsageError, match="--format"):
        call(run, "--text", text)
    assert result_of(capsys, run, "--text", text, "--format", "text")["words"] == len(TEXT.split())


def test_results_take_the_name_of_the_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "my book.txt"
    text.write_text(TEXT, encoding="utf-8")
    call(run, "--text", text)
    assert "my-book.txt" in RunFolder(run).evaluation()["text"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stride", "0"], "between 1 and the context length 16, not 0"),
        (["--stride", "17"], "between 1 and the context length 16, not 17"),
        (["--context-length", "33"], "more than the 32 positions"),
        (["--context-length", "0"], "at least 1"),
        (["--batch-size", "0"], "batch size must be at least 1"),
        (["--max-tokens", "1"], "at least 2"),
        (["--max-tokens", "-5"], "at least 2"),
        (["--text", "no-such-file.txt"], "no-such-file.txt"),
        (["--name", "../evil"], "cannot name a result"),
        (["--store", "s", "--text", "t"], "give one"),
        (["--store", "no-such-store"], "no-such-store"),
        (["--documents", "blocks", "--stride", "8"], "leave --stride out"),
        (["--documents", "blocks", "--max-tokens", "9"], "cannot be cut in blocks of 16"),
    ],
)
def test_bad_input_is_one_clear_line(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        call(run, *words)
    assert "\n" not in str(caught.value)


def test_runs_that_cannot_be_scored(tmp_path: Path, store: Path) -> None:
    with pytest.raises(UsageError, match="no run or model folder"):
        call(tmp_path / "none")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "run.json").write_text('{"status": "running"}', encoding="utf-8")
    with pytest.raises(UsageError, match="no model yet"):
        call(tmp_path / "young")
    moved = save_tiny_run(tmp_path / "moved", tmp_path / "gone")
    with pytest.raises(UsageError, match=r"not at .*gone any more.*--store"):
        call(moved)
    assert call(moved, "--store", store) == 0


def test_blank_text_and_a_foreign_tokenizer_are_named(run: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n", encoding="utf-8")
    with pytest.raises(UsageError, match="no text to score in"):
        call(run, "--text", blank)
    other = tiny_tokenizer()
    other.add_tokens(["surprise"])
    with pytest.raises(UsageError, match="another tokenizer"):
        call(run, "--store", write_store(tmp_path / "other", other, DOCUMENTS))
    book = tmp_path / "book.txt"
    book.write_text(TEXT, encoding="utf-8")
    small = save_tiny_model(tmp_path / "small", vocab_size=20)
    with pytest.raises(UsageError, match="outside the model's vocabulary of 20"):
        call(small, "--text", book)


def test_a_model_of_nan_fails_and_writes_nothing(tmp_path: Path, store: Path) -> None:
    broken = save_tiny_run(tmp_path / "broken", store)
    model = load_model(broken / "model").model
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    model.save_pretrained(broken / "model")
    with pytest.raises(PatchtrainError, match=r"the loss of .* is nan"):
        call(broken)
    assert not (broken / "evaluation.json").exists()


def test_a_damaged_store_is_not_scored(
    run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "store")
    tokens = np.memmap(tmp_path / "store" / "validation.tokens.bin", dtype=np.uint16, mode="r+")
    tokens[5] = 60_000
    tokens.flush()
    with pytest.raises(PatchtrainError, match=r"validation\.tokens\.bin is damaged"):
        call(run, "--store", tmp_path / "store")
    # In a store too large for its checksums to be checked each time, the batch is refused.
    monkeypatch.setattr("patchtrain.evaluation.evaluate.VERIFIED_BYTES", 0)
    with pytest.raises(UsageError, match="token id 60000 is outside the model's vocabulary"):
        call(run, "--store", tmp_path / "store")


def test_documents_of_a_large_store_that_do_not_follow_one_another(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "store")
    offsets = np.memmap(tmp_path / "store" / "validation.offsets.bin", dtype="<i8", mode="r+")
    offsets[1] = offsets[2] + 1
    offsets.flush()
    plan = {"context_length": 16, "stages": [], "documents": "separate"}
    separate = save_tiny_run(tmp_path / "run", tmp_path / "store", plan=plan)
    monkeypatch.setattr("patchtrain.evaluation.evaluate.VERIFIED_BYTES", 0)
    with pytest.raises(PatchtrainError, match="offsets of the validation split are damaged"):
        call(separate)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"plan": {"context_length": "16"}}, r"plan\.context_length is '16', not a length"),
        ({"plan": {"context_length": -1}}, r"plan\.context_length is -1, not a length"),
        ({"plan": {"context_length": 10**30}}, "more than the 32 positions"),
        ({"plan": {"documents": ["mixed"]}}, r"plan\.documents is \['mixed'\], not one of mixed"),
        ({"store": {"path": 7}}, "does not name a token store"),
        ({"store": 7}, "does not name a token store"),
    ],
)
def test_a_run_json_with_other_values(
    tmp_path: Path, store: Path, info: dict[str, Any], message: str
) -> None:
    odd = save_tiny_run(tmp_path / "odd", store)
    values = json.loads((odd / "run.json").read_text())
    (odd / "run.json").write_text(json.dumps(values | info))
    with pytest.raises(PatchtrainError, match=message):
        call(odd)
    assert not (odd / "evaluation.json").exists()


def staged_run(folder: Path, store: Path) -> Path:
    """A run that kept the model of its first stage, another than its last."""
    stages = [{"name": "patches of 2", "patch_size": 2}, {"name": "tokens", "patch_size": 1}]
    run = save_tiny_run(folder, store, plan={"context_length": CONTEXT // 2, "stages": stages})
    shutil.copytree(run / "model", run / "stage-1")
    tiny_model(len(tiny_tokenizer()), seed=1).save_pretrained(run / "stage-1")
    return run


def test_the_models_before_the_last_stage_read_the_same_text(
    store: Path, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = staged_run(tmp_path / "run", store)
    for words in ((), ("--text", lines), ("--stride", "4", "--max-tokens", "90")):
        result = result_of(capsys, run, *words)
        (before,) = result["stages"]
        assert (before["stage"], before["patch_size"]) == (1, 2)
        alone = ["--store", store, *words] if "--text" not in words else words
        alone = [*alone, "--context-length", CONTEXT // 2, "--out", tmp_path / "o.json"]
        for values, model in ((before, run / "stage-1"), (result, run / "model")):
            expected = result_of(capsys, model, *alone)
            assert expected["stages"] == []
            for key in ("nats", "targets", "utf8_bytes", "by_position", "by_document"):
                assert values[key] == expected[key]
        assert before["nats"] != result["nats"]
    assert RunFolder(run).evaluation()["text"]["validation"]["stages"] == [before]


def test_the_screen_says_what_the_last_stage_did(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = staged_run(tmp_path / "run", store)
    result = result_of(capsys, run)
    change = result["bits_per_byte"] - result["stages"][0]["bits_per_byte"]
    assert call(run) == 0
    out = capsys.readouterr().out
    assert "after stage 1" in out
    assert "(patches of 2, read token by token)" in out
    assert f"from there to the end {change:+.4f} bits per byte" in out
    assert call(run, "--final-only") == 0
    assert "after stage" not in capsys.readouterr().out
    assert result_of(capsys, run, "--final-only")["stages"] == []


def test_a_broken_model_of_a_stage_is_named(store: Path, tmp_path: Path) -> None:
    run = staged_run(tmp_path / "run", store)
    (run / "stage-1" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PatchtrainError, match=r"cannot load the model in .*stage-1"):
        call(run)
    assert call(run, "--final-only") == 0


def metrics_of(run: Path) -> None:
    """Two stages of metrics in a tiny run."""
    stages = [{"name": "patches of 2", "patch_size": 2}, {"name": "tokens", "patch_size": 1}]
    values = json.loads((run / "run.json").read_text()) | {"plan": {"stages": stages}}
    (run / "run.json").write_text(json.dumps(values))
    rows = [
        {"event": event, "step": step, "stage": stage, "tokens": 64 * step, "positions": 32 * step,
         "flops": 1e6 * step, "seconds": 0.5 * step, "data_seconds": 0.1 * step}
        for event, step, stage in (("train", 4, 0), ("switch", 4, 1), ("train", 10, 1))
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_speed_is_told_from_the_metrics_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_tiny_run(tmp_path / "run")
    with pytest.raises(UsageError, match="no metrics of training"):
        call(run, "--speed")
    metrics_of(run)
    assert call(run, "--speed", "--peak-flops", "8e6") == 0
    out = capsys.readouterr().out
    assert re.search(r"1 patches of 2 +4 +2\.0 s +128 +64 +2\.00 MFLOP/s +25% +20%", out)
    assert re.search(r"all +10 +5\.0 s +128 +64 +2\.00 MFLOP/s +25% +20%", out)
    assert "8.00 MFLOP/s, as given" in out
    result = result_of(capsys, run, "--speed", "--peak-flops", "8e6")
    assert RunFolder(run).evaluation()["throughput"]["training"] == result
    assert [stage["flop_per_s"] for stage in result["stages"]] == [2e6, 2e6]
    # On this machine nothing says that the run was made here, so its peak cannot be measured.
    assert call(run, "--speed", "--name", "unknown") == 0
    assert "not known on this machine: name it with --peak-flops" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--peak-flops", "1e12"], "is for --speed"),
        (["--speed", "--peak-flops", "-1"], "a number above 0"),
        (["--speed", "--peak-flops", "nan"], "a number above 0"),
    ],
)
def test_bad_options_of_speed(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(run, *words)


def test_a_text_that_is_named_is_scored_beside_what_else_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, text = save_tiny_run(tmp_path / "run"), tmp_path / "text.txt"
    text.write_text(TEXT)
    metrics_of(run)
    assert call(run, "--speed", "--peak-flops", "8e6", "--text", text) == 0
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    assert "2.00 MFLOP/s" in printed
    assert RunFolder(run).evaluation().keys() == {"text", "throughput"}


def test_a_model_without_a_run_has_no_speed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run folder: it has no run\.json"):
        call(save_tiny_model(tmp_path / "model"), "--speed")
