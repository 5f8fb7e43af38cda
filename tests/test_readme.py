"""What README and docs say is true: commands run, code runs, quoted output is a result's."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchtrain import PatchConfig
from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.runs import read_evaluation
from patchtrain.watch.status import STATUSES
from tests.cli.corpus import write_corpus
from tests.cli.test_resume import stop_at
from tests.docs.reading import pages, text_of
from tests.evaluation.chatty import PROMPTS, save_chatty_run, write_lines
from tests.models import VOCAB, tiny_model
from tests.report.fake_runs import write_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Without the last two, most of so short a run would be evaluation and checkpoints.
SHORT = ["plan.steps=20", "plan.tokens_per_step=1024", "plan.max_epochs=9",
         "training.eval_steps=0.5", "training.save_steps=0.5"]  # fmt: skip


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str = README) -> list[str]:
    lines = [line for block in blocks("bash", text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("patchtrain ")]


def test_the_commands_on_your_own_text_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "YOUR-TEXT", sentences=6000)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "YOUR-TEXT").rename(tmp_path / "text.txt")
    assert len(commands()) == 7
    for command in commands():
        words = shlex.split(command.replace("YOUR-TEXT", "text.txt"))[1:]
        if words[0] == "train":
            words[2:2] = SHORT  # what it says, on less text
        assert main(words) == 0, command
    assert (tmp_path / "runs" / "small" / "report.html").is_file()
    assert capsys.readouterr().out


def test_the_commands_on_going_on_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "surviving.md").read_text(encoding="utf-8")
    first, second = (shlex.split(line, comments=True)[1:] for line in commands(text))
    short = [*SHORT, "--quiet"]
    corpus = write_corpus(tmp_path / "text.txt", sentences=6000)
    prepare([corpus], tmp_path / "stores" / "text", train_tokenizer="bpe", vocab_size=300)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        stop_at(patched, 7)
        assert main([*first, *short]) == 143
    assert main([*second, *short]) == 0
    assert "going on after step 8 of 20" in capsys.readouterr().err


def test_the_commands_on_the_bill_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    corpus = write_corpus(tmp_path / "text.txt")
    prepare([corpus], tmp_path / "stores" / "text", train_tokenizer="bpe", vocab_size=300)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    assert len(commands(text)) == 5
    for command in commands(text):
        assert main(shlex.split(command)[1:]) == 0, command
    assert "device-hours" in capsys.readouterr().out
    assert (tmp_path / "runs" / "patch-7b-rehearsal" / "model").is_dir()


def test_the_commands_on_evaluation_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    corpus = write_corpus(tmp_path / "text.txt", sentences=6000)
    prepare([corpus], tmp_path / "stores" / "text", train_tokenizer="bpe", vocab_size=300)
    write_corpus(tmp_path / "YOUR-TEXT", sentences=300).rename(tmp_path / "own.txt")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    short = [*SHORT, "--quiet"]
    assert len(commands(text)) == 7
    for command in commands(text):
        words = shlex.split(command.replace("YOUR-TEXT", "own.txt"), comments=True)[1:]
        assert main([*words, *(short if words[0] == "train" else [])]) == 0, command
    said = capsys.readouterr().out
    assert "after stage 1" in said
    assert "waiting for data" in said
    kept = json.loads((tmp_path / "runs" / "small" / "evaluation.json").read_text())
    assert list(kept["text"]) == ["validation", "own.txt", "blocks"]
    assert json.loads((tmp_path / "model.json").read_text())["text"].keys() == {"own.txt"}
    page = (tmp_path / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    assert "Loss by tokens of context: own.txt" in page


def test_the_commands_on_instructions_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "instructions.md").read_text(encoding="utf-8")
    save_chatty_run(tmp_path / "runs" / "small")
    rows = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(20)]
    write_lines(tmp_path / "alpaca.json", rows)
    write_lines(tmp_path / "ifeval_prompts.jsonl", PROMPTS)
    monkeypatch.chdir(tmp_path)
    assert len(commands(text)) == 6
    for command in commands(text):
        words = shlex.split(command)[1:]
        short = ["--max-new-tokens", "4"] if "--ifeval" in words else []
        assert main([*words, *short]) == 0, command
    told = (tmp_path / "runs" / "small-sft" / "report.html").read_text(encoding="utf-8")
    assert "small-sft tuned a model of" in told
    assert "small-sft has no" not in told
    assert read_evaluation(tmp_path / "alone.json")["instructions"].keys() == {"ifeval"}
    both = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "small-sft-held_out" in both
    assert "IFEval" in both


def test_the_commands_on_the_command_line_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    monkeypatch.setattr("patchtrain.data.hub.reachable", lambda: False)
    monkeypatch.setattr("patchtrain.doctor.speed._SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    assert len(commands(text)) == 2
    for command in commands(text):
        assert main(shlex.split(command)[1:]) == 0, command
        assert capsys.readouterr().out
    (shown,) = blocks("text", text)
    command, said = shown.strip().splitlines()
    assert main(shlex.split(command)[2:]) == 2
    assert capsys.readouterr().err.strip() == said


def test_the_commands_on_watching_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "watch.md").read_text(encoding="utf-8")
    write_run(tmp_path / "runs" / "small", ((4, 100), (1, 100)))
    monkeypatch.chdir(tmp_path)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("patchtrain.cli.watch.time.sleep", interrupt)
    assert len(commands(text)) == 4
    for command in commands(text):
        assert main(shlex.split(command, comments=True)[1:]) == 0, command
        said = capsys.readouterr().out
        assert "finished" in said
    (code,) = blocks("python", text)
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda words, **more: run([sys.executable, "-m", *words], **more)
    )
    exec(code)
    assert capsys.readouterr().out == "finished 200 200 None\n"
    assert all(f"*{status}*" in text for status in STATUSES)


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_trainer_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rows = [{"input_ids": torch.randint(0, VOCAB, (64,)).tolist()} for _ in range(3000)]
    names: dict[str, Any] = {
        "model": tiny_model(max_position_embeddings=8),
        "dataset": datasets.Dataset.from_list(rows),
    }
    (code,) = (block for block in blocks("python") if "PatchTrainer" in block)
    exec(code.replace("max_steps=1000", "max_steps=12, use_cpu=True, disable_tqdm=True"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 12
    assert [stage.patch_size for stage in trainer.plan.stages] == [4, 1]
    assert isinstance(names["args"], PatchConfig)


def test_the_loop_examples_run_and_agree() -> None:
    model = tiny_model()
    ids = torch.randint(0, VOCAB, (2, 32))
    in_place, two_functions = (block for block in blocks("python") if "PatchTrainer" not in block)
    first: dict[str, Any] = {"model": model, "ids": ids}
    exec(in_place, first)

    class Body(nn.Module):
        def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
            return model.model(inputs_embeds=embeddings).last_hidden_state

    second = {
        "transformer": Body(),
        "embed": model.get_input_embeddings(),
        "head": model.lm_head,
        "ids": ids,
    }
    exec(two_functions, second)
    torch.testing.assert_close(first["loss"], second["loss"])


def test_quoted_results_are_what_a_script_wrote() -> None:
    quote = runpy.run_path(str(ROOT / "benchmarks" / "quote.py"))
    quoted = 0
    for page in pages():
        text = text_of(page)
        assert quote["quoting"](text) == text, f"{page}: run python benchmarks/quote.py"
        quoted += text.count("<!-- results/")
    assert quoted >= 12
    with pytest.raises(FileNotFoundError):
        quote["quoting"]("<!-- results/none.md -->\n<!-- end -->")


def test_links_lead_somewhere() -> None:
    for page in pages():
        text, folder = text_of(page), (ROOT / page).parent
        for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", text):
            target = (folder / link).resolve() if link else ROOT / page
            assert target.exists(), f"{page}: {link}"
            if heading:
                assert heading in anchors(target.read_text(encoding="utf-8")), f"{page}: #{heading}"


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links, on GitHub as on the site."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
