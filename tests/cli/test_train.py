"""A run as a user starts it: prepare, train, eval, generate, and what is refused on the way."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, pipeline

from patchtrain.cli.main import main
from patchtrain.cli.train import _print_result
from patchtrain.data.prepare import prepare
from patchtrain.data.store import TokenStore
from patchtrain.runs import RunFolder
from tests.cli.corpus import write_corpus
from tests.report.fake_runs import write_run

RECIPE: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    },
    "plan": {
        "preset": "superposition",
        "patch_size": 2,
        "step_fraction": 0.4,
        "context_length": 16,
        "tokens_per_step": 256,
        "steps": 30,
    },
    # By default most of so short a run would be evaluation and checkpoints.
    "training": {
        "learning_rate": 1e-2,
        "use_cpu": True,
        "eval_steps": 0.2,
        "eval_tokens": 256,
        "save_steps": 0.5,
    },
    "samples": ["The <b>cat</b>"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_corpus(folder / "corpus.txt")
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=300)
    return folder / "store"


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder, store)
    assert main(["train", str(recipe), "--quiet"]) == 0
    return RunFolder.open(folder / "run")


def write_recipe(folder: Path, store: Path, **values: Any) -> Path:
    recipe = {"store": str(store), "out": str(folder / "run"), **RECIPE, **values}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def test_a_run_leaves_its_whole_folder(trained: RunFolder, store: Path) -> None:
    info = trained.info()
    assert info["status"] == "finished"
    assert info["store"]["path"] == str(store.resolve())
    assert info["result"]["context_length"] == 16
    assert 0 < info["result"]["bits_per_byte"] < 8
    assert trained.metrics("switch")[0]["step"] == 12
    (sample,) = trained.samples()
    assert sample["prompt"] == "The <b>cat</b>"
    page = trained.report_file.read_text()
    assert "<b>cat</b>" not in page
    assert "&lt;b&gt;cat" in page
    plan = yaml.safe_load(trained.recipe_file.read_text())["plan"]
    assert plan.items() >= {**RECIPE["plan"], "schedule": "wsd", "hold": "compute"}.items()


def test_the_result_is_a_plain_hugging_face_model(trained: RunFolder) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.model)
    assert type(model).__name__ == "LlamaForCausalLM"
    for file in trained.model.glob("*.json"):
        assert "patch" not in file.read_text().lower() or file.name == "tokenizer.json"
    assert not list(trained.model.glob("*.bin"))
    generate = pipeline("text-generation", model=str(trained.model))
    text = generate("the cat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("the cat")
    assert model.generation_config.eos_token_id == 0


def test_the_model_has_a_card_whose_code_runs(
    trained: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained.model / "README.md").read_text(encoding="utf-8")
    assert "token-superposition" in text
    assert "made from" in text
    assert trained.info()["store"]["fingerprint"] in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("The <b>cat</b>")


def test_eval_brings_the_card_up_to_date(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_corpus(tmp_path / "other.txt", sentences=50)
    assert main(["eval", str(trained.path), "--text", str(text), "--final-only"]) == 0
    assert "| other.txt |" in (trained.model / "README.md").read_text(encoding="utf-8")


def test_eval_agrees_with_the_run(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained.path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["text"]["validation"]
    assert result["loss"] == pytest.approx(trained.info()["result"]["loss"], rel=1e-6)


def test_generate_continues_a_prompt(
    trained: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(trained.path), "the cat", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("the cat")


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, store)
    assert main(["train", str(recipe), "plan.rows=tokens", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "none beyond the preset's" in text  # the stages show the rows
    assert "patches of 2 in rows of 8 positions" in text
    assert main(["train", str(recipe), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for part in ("patches of 2", "6,144", "4,608", "40%", "chunked (one pass over the vocabulary",
                 "0.714 of token-level", "about 0:0", "epochs"):  # fmt: skip
        assert part in text, text
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_makes_no_repository_on_the_hub(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(trainer: Any) -> None:
        raise AssertionError("a repository was to be made")

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", make)
    recipe = write_recipe(tmp_path, store)
    assert main(["train", str(recipe), "training.push_to_hub=true", "--dry-run"]) == 0


def test_a_validation_loss_that_is_no_number_is_shown_as_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"loss": None, "perplexity": None, "bits_per_byte": None}
    _print_result(write_run(tmp_path / "run", result=result), "runs/x")
    assert "all validation text: – nats a token" in capsys.readouterr().out  # noqa: RUF001


def test_two_runs_of_one_recipe_are_the_same(
    trained: RunFolder, store: Path, tmp_path: Path
) -> None:
    assert main(["train", str(write_recipe(tmp_path, store)), "--quiet"]) == 0
    again = RunFolder.open(tmp_path / "run")
    losses = [[row["loss"] for row in run.metrics("train")] for run in (trained, again)]
    assert losses[0] == losses[1]
    weights = [(run.model / "model.safetensors").read_bytes() for run in (trained, again)]
    assert weights[0] == weights[1]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str) -> None:
    capsys.readouterr()
    assert main(argv) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("patchtrain: error: ")
    assert message in error


def test_a_run_folder_that_exists_is_kept_unless_it_may_go(
    trained: RunFolder, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store, out=str(trained.path)))
    before = trained.info_file.read_bytes()
    refused(capsys, ["train", recipe], 2, "exists; go on with it with --resume, replace it with")
    assert trained.info_file.read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    argv = ["train", recipe, "--overwrite", f"out={tmp_path / 'mine'}"]
    refused(capsys, argv, 2, "is not a run folder, so --overwrite does not touch it")
    assert (tmp_path / "mine" / "thesis.tex").exists()
    argv = ["train", recipe, f"out={tmp_path / 'run'}", "plan.steps=5", "--quiet"]
    assert main(argv) == 0
    refused(capsys, argv, 2, "exists")
    assert main([*argv, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.patch_size=0"], "patch_size must be a whole number of at least 1, not 0"),
        (["plan.patch_size=3", "plan.preset=paper"], "tokens_per_step 256 is not a multiple of 48"),
        (["plan.steps=100000"], "epochs"),
        (["store=nowhere"], "no token store at nowhere"),
        (["model.config.vocab_size=100"], "leave vocab_size out"),
        (["model.config.max_position_embeddings=8"], "beyond the model's max_position_embeddings"),
        (["training.learning_rte=1"], "did you mean 'learning_rate'"),
        (["training.learning_rate=-1"], "learning_rate must be above 0"),
        (["training.resume_from_checkpoint=x"], "use --resume"),
        (["training.fp16=true"], "fp16 is not supported"),
        (["training.adam_beta2=3"], "adam_beta2 must be at least 0 and below 1, not 3.0"),
        (["training.dataloader_num_workers=-1"], "dataloader_num_workers must be from 0 to 256"),
        (["training.accelerator_config={a: 1}"], "unexpected keyword argument 'a'"),
        (["training.report_to=[nothing]"], "nothing"),
        (["model.pretrained=./nowhere", "model.config=null"], "./nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    refused(capsys, ["train", recipe, *overrides], 2, message)
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_tokens_are_refused_before_training(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "store")
    tokens = np.memmap(tmp_path / "store" / "train.tokens.bin", dtype=np.uint16, mode="r+")
    tokens[:] = 60_000
    tokens.flush()
    recipe = str(write_recipe(tmp_path, tmp_path / "store"))
    refused(capsys, ["train", recipe, "--quiet"], 1, "train.tokens.bin is damaged")
    assert not (tmp_path / "run").exists()
    # A store too large for its checksums to be checked at each start is caught at the first step.
    monkeypatch.setattr("patchtrain.training.run.VERIFIED_BYTES", 0)
    refused(capsys, ["train", recipe, "--quiet"], 1, "token id 60000 in step 0 is beyond")


def test_a_plan_without_a_token_level_says_so(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    assert main(["train", recipe, "plan.step_fraction=1", "plan.steps=5"]) == 0
    assert "warning: the plan ends at patch level" in capsys.readouterr().err
    argv = ["train", recipe, "plan.step_fraction=1", "--dry-run"]
    assert main(argv) == 0
    assert "the plan ends at patch level" in capsys.readouterr().out


def test_bf16_recipes_are_tried_out_without_a_gpu(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"bf16": True, "torch_compile": True}
    recipe = str(write_recipe(tmp_path, store, training=training))
    assert main(["train", recipe, "--dry-run"]) == 0
    assert "about 0:0" in capsys.readouterr().out


def test_a_rate_far_too_high_fails_with_advice(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    argv = ["train", recipe, "training.learning_rate=1e38", "--quiet"]
    refused(capsys, argv, 1, "a lower rate (training.learning_rate=5e+37")
    run = RunFolder.open(tmp_path / "run")
    assert run.info()["status"] == "failed"
    assert not run.model.exists()
    refused(capsys, ["generate", str(tmp_path / "run"), "x"], 2, "model")


def test_a_failure_keeps_the_run_it_was_to_replace(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    short = ["train", recipe, "plan.steps=5", "--quiet", "--overwrite"]
    assert main(short) == 0
    good = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    for _ in range(2):
        refused(capsys, [*short, "training.learning_rate=1e38"], 1, "a lower rate (")
        waiting = tmp_path / "run.replaced" / "model" / "model.safetensors"
        assert waiting.read_bytes() == good
    with monkeypatch.context() as patched:
        patched.setattr("patchtrain.training.run._conclude", full_disk)
        refused(capsys, short, 1, "the disk is full")
    assert RunFolder.open(tmp_path / "run").info()["status"] == "failed"
    assert main(short) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == good
    assert not (tmp_path / "run.replaced").exists()


def full_disk(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_that_fails_before_its_first_step_can_be_replaced(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    with monkeypatch.context() as patched:
        patched.setattr("patchtrain.training.trainer.PatchTrainer.create_optimizer", full_disk)
        refused(capsys, ["train", recipe, "--quiet"], 1, "the disk is full")
    assert RunFolder.open(tmp_path / "run").info()["status"] == "failed"
    assert main(["train", recipe, "--quiet", "--overwrite", "plan.steps=5"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_in_one_line_and_says_so_in_the_folder(
    store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    command = [sys.executable, "-m", "patchtrain", "train", recipe, "plan.steps=3000",
               "plan.max_epochs=99"]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    lines = []
    for line in child.stderr:  # until it trains
        lines.append(line)
        if line.startswith("step "):
            child.send_signal(number)
            break
    rest = child.stderr.read()
    assert child.wait(60) == (143 if number == signal.SIGTERM else 130)
    assert rest.splitlines()[-1].startswith(f"patchtrain: error: stopped by {number.name} after")
    assert "Traceback" not in rest
    assert RunFolder.open(tmp_path / "run").info()["status"] == "interrupted"
    assert not (tmp_path / "run" / "model").exists()


def test_progress_in_a_log_file_names_stage_loss_and_time_left(store: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, store))
    command = [sys.executable, "-m", "patchtrain", "train", recipe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert any("patches of 2: loss" in line and "left" in line for line in lines)
    assert lines[-1].startswith("step 30/30, tokens: loss")
    assert "validation" in lines[-1]
    assert "nats a token" in done.stdout
    assert "\x1b" not in done.stderr + done.stdout


def test_tensorboard_is_written_when_asked_for(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    recipe = str(write_recipe(tmp_path, store))
    argv = ["train", recipe, "--quiet", "training.report_to=tensorboard", "plan.steps=5"]
    assert main(argv) == 0
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))


def test_the_loss_backend_can_be_forced_and_is_said_when_training_begins(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, store)
    forced = ["train", str(recipe), "training.loss_backend=torch"]
    assert main([*forced, "--dry-run"]) == 0
    assert "torch (asked for)" in capsys.readouterr().out
    assert main(["train", str(recipe), "plan.steps=4", f"out={tmp_path / 'run'}"]) == 0
    assert "patch loss: chunked (one pass over the vocabulary" in capsys.readouterr().err
    assert main(["train", str(recipe), "training.loss_backend=quick", "--dry-run"]) == 2
    assert "'quick' is not known; use auto, chunked" in capsys.readouterr().err


def test_separate_documents_are_trained_measured_and_evaluated_each_alone(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, store)
    out = tmp_path / "run"
    separate = ["train", str(recipe), "plan.documents=separate", "plan.steps=6", f"out={out}"]
    assert main([*separate, "--dry-run"]) == 0
    assert "tokens are padding or start tokens" in capsys.readouterr().out
    assert main(separate) == 0
    assert "documents: separate, " in capsys.readouterr().err
    result = RunFolder.open(out).info()["result"]
    assert result["documents"] == "separate"
    assert main(["eval", str(out), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["text"]["validation"]
    assert "each document on its own" in scored["scored"]
    assert scored["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert main(["eval", str(out), "--json", "--max-tokens", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["text"]["validation"]["targets"] == 50


def spoil_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make the loss of one device pass of the runs to come nan."""
    from patchtrain.training import trainer

    passes = iter(range(10**6))
    plain = trainer.pass_loss

    def pass_loss(*args: Any) -> Any:
        return plain(*args) * (float("nan") if next(passes) == number else 1.0)

    monkeypatch.setattr(trainer, "pass_loss", pass_loss)


def test_a_bad_step_is_left_out_if_asked_and_said_at_the_end_and_on_the_page(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    spoil_step(monkeypatch, 7)
    argv = ["train", recipe, "--quiet", "training.eval_strategy=no", "training.save_strategy=no"]
    refused(capsys, argv, 1, "resume with training.on_nonfinite=skip")
    (file,) = (tmp_path / "run" / "nonfinite").rglob("process-0.json")
    entry = json.loads(file.read_text(encoding="utf-8"))["sequences"][0]
    assert len(entry["ids"]) == 2 * 16
    assert entry["text"] == TokenStore.open(store).load_tokenizer().decode(entry["ids"])
    spoil_step(monkeypatch, 7)
    assert main([*argv, "--overwrite", "training.on_nonfinite=skip"]) == 0
    said = capsys.readouterr()
    assert "warning: loss became nan at step" in said.err
    assert "warning: 1 step was left out, as a loss or gradient was nan or infinite" in said.out
    run = RunFolder.open(tmp_path / "run")
    assert len(run.metrics("nonfinite")) == 1
    assert "1 step was left out" in run.report_file.read_text(encoding="utf-8")
    assert "step left out: loss became nan" in run.report_file.read_text(encoding="utf-8")
