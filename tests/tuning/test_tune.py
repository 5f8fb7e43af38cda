"""``patchtrain sft`` from data to a run's folder, and what a killed one leaves."""

from __future__ import annotations

import json
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchtrain import chat
from patchtrain.cli.main import main
from patchtrain.data.conversations import read_conversations
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.answer_loss import answer_loss
from patchtrain.evaluation.loading import load_model
from patchtrain.runs import RunFolder
from patchtrain.tuning import tune as tune_module
from patchtrain.tuning.tune import Tuning, tune
from tests.evaluation.tiny import save_tiny_run

pytest.importorskip("trl")
CONTEXT = 160
STEPS = 12
THINGS = ("cell", "leaf", "root", "light", "sugar", "soil", "water", "life")
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}" \
        "{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip


def save_run(folder: Path, template: str | None = None) -> Path:
    """A tiny run with room for a conversation."""
    run = save_tiny_run(folder, plan={"context_length": CONTEXT, "stages": []})
    config = run / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {
        "max_position_embeddings": CONTEXT}))  # fmt: skip
    if template:
        (run / "model" / "chat_template.jinja").write_text(template)
    return run


def write_data(file: Path, number: int = 40) -> Path:
    rows = [
        {"instruction": f"What is {THINGS[i % 8]}?", "input": str(i),
         "output": f"The {THINGS[i % 8]} is the unit of {THINGS[(i + 1) % 8]}."}
        for i in range(number)
    ]  # fmt: skip
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "rows.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "base")


def words(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["sft", str(run), "--data", str(data), "--out", str(out), "--max-steps", str(STEPS),
            "--learning-rate", "0.01", "--tokens-per-step", "400", "--validation-fraction", "0.1",
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(run: Path, data: Path) -> Path:
    out = run.with_name("tuned")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of our own making
        assert main(words(run, data, out, "--quiet")) == 0
    return out


def test_a_tuned_model_answers_better_and_is_a_plain_one(run: Path, tuned: Path) -> None:
    folder = RunFolder(tuned)
    info, about = folder.info(), folder.part("tuning")
    assert info["status"] == "finished"
    assert about["conversations"] == 40
    assert about["held_out_conversations"] == 4
    assert about["after"]["loss"] < 0.8 * about["before"]["loss"]
    assert not list(tuned.glob("checkpoint-*"))
    assert not list(tuned.glob(".*partial*"))
    model = AutoModelForCausalLM.from_pretrained(tuned / "model", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(tuned / "model")
    assert tokenizer.chat_template == chat.PLAIN_TEMPLATE
    original = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.get_input_embeddings().weight.shape == original.get_input_embeddings().weight.shape
    assert model.dtype == original.dtype


def test_the_held_out_loss_is_repeated_from_the_model_alone(run: Path, tuned: Path) -> None:
    held_out = read_conversations([tuned / "held_out.jsonl"]).rows
    about = RunFolder(tuned).part("tuning")
    for place, key in ((run / "model", "before"), (tuned / "model", "after")):
        loaded = load_model(place)
        chat.use_template(loaded.tokenizer)
        again = answer_loss(loaded.model, loaded.tokenizer, held_out, CONTEXT)
        assert again.to_dict() == pytest.approx(about[key], rel=1e-6)
    for folder, key in ((run, "before"), (tuned, "after")):
        kept = RunFolder(folder).evaluation()["instructions"]["tuned-held_out"]
        assert kept["measure"] == "answers"
        assert kept["loss"] == about[key]["loss"]


def test_the_record_has_every_step_and_the_page_opens(tuned: Path) -> None:
    folder = RunFolder(tuned)
    train = folder.metrics("train")
    assert [row["step"] for row in train] == list(range(1, STEPS + 1))
    assert all(first["tokens"] < second["tokens"] for first, second in pairwise(train))
    assert folder.metrics("eval")[0]["step"] == 0
    assert train[0]["learning_rate"] == 0.01
    assert folder.info()["plan"]["total_steps"] == STEPS
    page = folder.report_file.read_text(encoding="utf-8")
    assert "tuned" in page
    assert len(folder.samples()) == 3


@pytest.mark.parametrize("how", ["signal", "killed"])
def test_a_tuning_that_ended_early_goes_on_as_if_it_had_not(
    how: str, run: Path, data: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from patchtrain.tuning.trainer import Recording

    out, usual = tmp_path / "tuned", Recording.on_step_end

    def end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            if how == "killed":
                raise KeyboardInterrupt
            self.stop.signal = 15
        usual(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Recording, "on_step_end", end)
        assert main(words(run, data, out, "--quiet")) == (143 if how == "signal" else 130)
    assert RunFolder(out).info()["status"] == "interrupted"
    assert not (out / "model").exists()
    left = [path.name for path in out.glob("checkpoint-*")]
    assert left == (["checkpoint-5"] if how == "signal" else ["checkpoint-4"])
    half = out / ".checkpoint.partial-x" / "checkpoint-6"
    half.mkdir(parents=True)
    assert main(["sft", str(run), "--out", str(out), "--resume"]) == 2
    assert "required: --data" in capsys.readouterr().err
    assert main(words(run, data, out, "--quiet")) == 2
    assert "exists; go on with it with --resume" in capsys.readouterr().err
    assert main(words(run, data, out, "--resume", "--seed", "5")) == 2
    assert "was tuned with another seed" in capsys.readouterr().err
    assert main(words(run, data, out, "--resume")) == 0
    assert "step 12 of 12" in capsys.readouterr().err
    assert not half.exists()
    whole, resumed = (load_file(path / "model" / "model.safetensors") for path in (tuned, out))
    assert all(bool((whole[name] == resumed[name]).all()) for name in whole)
    steps = [row["step"] for row in RunFolder(out).metrics("train")]
    assert steps == list(range(1, STEPS + 1))
    assert main(words(run, data, out, "--resume")) == 0
    printed = capsys.readouterr()
    assert "finished already" in printed.err
    assert printed.out.startswith("held-out answers: ")


def losses(folder: RunFolder) -> list[float]:
    return [row[key] for row in folder.metrics("train") for key in ("loss", "grad_norm")]


def test_packed_rows_do_not_see_each_other_and_both_kinds_of_rows_learn_the_same(
    run: Path, tmp_path: Path
) -> None:
    """All rows in one step: packed, padded and without the template's marks they are one sum."""
    data = write_data(tmp_path / "rows.json", 12)

    def tuned(name: str, base: Path, packing: bool) -> RunFolder:
        settings = Tuning([str(data)], max_steps=2, tokens_per_step=64 * CONTEXT, held_out=0,
                          learning_rate=1e-3, packing=packing)  # fmt: skip
        return tune(base, tmp_path / name, settings, quiet=True)

    packed, padded = (tuned(f"{p}", run, p) for p in (True, False))
    assert 1 < packed.part("tuning")["packed_rows"] < 12
    assert losses(packed) == pytest.approx(losses(padded), rel=1e-4)
    assert packed.part("tuning")["after"] is None
    unmarked = chat.PLAIN_TEMPLATE.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    other = tuned("unmarked", save_run(tmp_path / "unmarked-base", unmarked), True)
    assert losses(other) == pytest.approx(losses(packed), rel=1e-4)


def test_what_cannot_be_tuned_is_one_clear_line(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Tuning([str(data)])
    cases: list[tuple[Tuning, Path, str]] = [
        (
            Tuning([str(data)], context_length=CONTEXT + 1),
            tmp_path / "o",
            "most the model's 160",
        ),
        (Tuning([str(data)], held_out=1.5), tmp_path / "o", "held-out share must be"),
        (Tuning([str(data)], context_length=8), tmp_path / "o", "no answer begins within the con"),
        (Tuning(["none.json"]), tmp_path / "o", "no file or folder none.json"),
        (settings, run, "is the model to be tuned"),
        (settings, data, "is a file; choose a folder"),
    ]
    for changed, out, message in cases:
        with pytest.raises(UsageError, match=message):
            tune(run, out, changed)
    assert not (tmp_path / "o").exists()
    with pytest.raises(UsageError, match="--learning-rate must be above 0"):
        Tuning([str(data)], learning_rate=0)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(UsageError, match=r"pip install 'patchtrain\[sft\]'"):
        tune(run, tmp_path / "o", settings)


def test_a_tuning_killed_before_its_first_step_begins_anew(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    settings = Tuning([str(data)], max_steps=1, tokens_per_step=160)
    with monkeypatch.context() as patched:
        patched.setattr(tune_module, "answer_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(run, tmp_path / "o", settings, quiet=True)
    assert (tmp_path / "o" / "held_out.jsonl").is_file()
    assert tune(run, tmp_path / "o", settings, resume=True).info()["status"] == "finished"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(UsageError, match="is not the folder of a tuning, so --resume does not"):
        tune(run, tmp_path / "other", settings, resume=True)


def test_a_tuning_that_ruins_the_model_says_so(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Tuning([str(data)], max_steps=1, tokens_per_step=96, held_out=0.1)
    measured = tune_module.answer_loss
    calls = []

    def broken(*args: Any) -> Any:
        calls.append(1)
        loss = measured(*args)
        return loss if len(calls) == 1 else type(loss)(float("nan"), 1, 1, 0.0, 0, 0)

    monkeypatch.setattr(tune_module, "answer_loss", broken)
    with pytest.raises(PatchtrainError, match="the tuned model is broken: its loss is nan"):
        tune(run, tmp_path / "o", settings, quiet=True)
    assert RunFolder(tmp_path / "o").info()["status"] == "failed"
