"""``patchtrain compare`` and ``study sweep``: what docs/compare.md says runs, and one real run."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from patchtrain.analysis.studies import comparison, runner
from patchtrain.analysis.studies.study import Arm
from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.runs import RunFolder
from tests.analysis.studies.pretend import Pretend
from tests.cli.corpus import write_corpus

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
RECIPE = """
store: store
model:
  config: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
           num_attention_heads: 2, num_key_value_heads: 2, tie_word_embeddings: true}
plan: {preset: superposition, patch_size: 2, step_fraction: 0.5, context_length: 16,
       tokens_per_step: 128, steps: 6}
training: {learning_rate: 4.0e-3, per_device_train_batch_size: 8, save_strategy: "no"}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    corpus = write_corpus(tmp_path / "text.txt", sentences=4000)
    prepare([corpus], tmp_path / "store", train_tokenizer="bpe", vocab_size=300)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    def end(arm: Arm, seed: int) -> float:
        return 2.0 - 0.1 * (arm.notes["contender"] != "token") + 0.01 * seed

    found = Pretend(end)
    monkeypatch.setattr(comparison, "train_runs", found)
    return found


def test_the_commands_of_the_docs_run(
    place: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "stores").mkdir()
    (place / "store").rename(place / "stores" / "text")
    (place / "recipes").symlink_to(ROOT / "recipes")
    (block,) = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 5
    for command in commands:
        words = shlex.split(command)[1:]
        at = words.index("recipes/small.yaml") + 1
        words[at:at] = ["plan.max_epochs=3000", "--quiet"]  # the text here is short
        assert main(words) == 0, command
    out = capsys.readouterr().out
    assert "at most" in out
    assert "recipe ended 0.1000 bits per byte below token" in out
    found = {path.parent.name for path in (place / "studies").glob("*/report.html")}
    assert found == {"compare-small", "mine", "loss", "sweep-small"}


def test_every_axis_of_the_docs_is_one() -> None:
    from patchtrain.analysis.studies.sweep import axis_from_words

    (block,) = re.findall(r"```text\n(.*?)```", DOCS, re.DOTALL)
    words = shlex.split(re.sub(r"  +[^-\n].*", "", block))
    axes = [word for word in words if word != "--over"]
    assert len(axes) == 10
    for axis in axes:
        assert axis_from_words(axis)[1], axis


def test_a_dry_run_writes_nothing_and_knows_the_time_once_something_ran(
    place: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "tiny.yaml", "--arms", "recipe", "--seeds", "0", "1"]
    words += ["--rates", "1e-3", "2e-3", "--out", "c", "--quiet"]
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "at most 6 runs: 4 to train every arm at each rate with seed 0" in out
    assert "not known until a run has finished" in out
    assert not (place / "c").exists()
    assert main([*words, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == json.loads((place / "c" / "results.json").read_text())
    assert len(pretend.trained) == 6
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "at most 0 runs, besides 6 that are there: " in out
    assert "at most 0.0 s, one at a time, at the pace of the finished runs" in out
    assert main([*words, "--dry-run", "--seeds", "0", "1", "2", "--json"]) == 0
    more: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (more["runs_there"], more["most_runs"]) == (6, 2)
    assert more["flops"] == pytest.approx(sum(arm["flops"] for arm in more["arms"]))
    assert more["seconds_left"] == pytest.approx(more["flops"] / 1e6)
    # Another rate may be the best one, which the other seeds have not been trained at yet.
    words[words.index("2e-3") + 1 : 0] = ["4e-3"]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["most_runs"] == 4
    assert main([*words, "--dry-run", "--json", "--overwrite"]) == 0
    anew = json.loads(capsys.readouterr().out)
    assert (anew["runs_there"], anew["most_runs"], anew["seconds_left"]) == (0, 8, None)
    assert main([*words, "plan.steps=60", "--dry-run"]) == 2
    assert "holds another study: recipe" in capsys.readouterr().err


def test_a_thousand_runs_are_counted_as_they_are_trained(
    place: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "sweep", "tiny.yaml", "--over", "K=2,4", "--over", "r=0.4,0.5", "--dry-run"]
    many = ["--seeds", *map(str, range(300)), "--confirm", "1", "--json"]
    assert main([*words, *many]) == 0  # all points with seed 0, two arms with the rest
    assert json.loads(capsys.readouterr().out)["most_runs"] == 5 + 2 * 299
    assert main([*words, *many, "--tuning-seeds", "300"]) == 2
    assert "1,500 runs are more than 1,000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "none.yaml"], "no recipe at none.yaml"),
        (
            ["compare", "tiny.yaml", "--baseline-rate", "0.01"],
            "--baseline-rate is for --baseline-budgets",
        ),
        (
            ["compare", "tiny.yaml", "--baseline-budgets", "--baseline-rate", "-1"],
            "--baseline-rate is a number above 0",
        ),
        (["compare", "tiny.yaml", "--arms", "tokn"], "'tokn' is no arm"),
        (["compare"], "required: RECIPE (see"),
        (["compare", "tiny.yaml", "--rates", "0"], "--rates are numbers above 0"),
        (["compare", "tiny.yaml", "--rates", "-1e-3"], "--rates are numbers above 0"),
        (["compare", "tiny.yaml", "--out", "store", "--dry-run"], "holds something else"),
        (["study", "sweep", "tiny.yaml", "--over", "K=2", "--trials", "3"], "--trials is of a"),
        (["compare", "tiny.yaml", "--workers", "0"], "--workers must be at least 1"),
        (["compare", "tiny.yaml", "plan.steps=900000"], "arm"),
        (["compare", "tiny.yaml", "--out", "tiny.yaml"], "is a file"),
        (["compare", "tiny.yaml", "--out", "store"], "holds something else"),
        (["study", "sweep", "tiny.yaml", "--over", "K=2..4"], "not a range"),
        (["study", "sweep", "tiny.yaml", "--over", "K=2", "--confirm", "0"], "--confirm"),
    ],
)
def test_wrong_usage_is_said_in_a_line(
    words: list[str], message: str, place: Path, pretend: Pretend,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_search_without_optuna_names_the_extra(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["study", "sweep", "tiny.yaml", "--over", "K=2,4", "--search", "bayes"]) == 2
    assert "pip install 'patchtrain[sweep]'" in capsys.readouterr().err


class _Ended:
    """A process that has ended."""

    pid = 0

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode

    def poll(self) -> int:
        return self.returncode

    wait = poll


def test_runs_are_trained_counted_and_shown(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(command: list[str], log: Any, place: Any) -> Any:
        return _Ended(main(command[3:]))  # in this process: the import alone takes seconds

    monkeypatch.setattr(runner, "_popen", here)
    words = ["study", "sweep", "tiny.yaml", "--over", "K=2,4", "--out", "s"]
    assert main([*words, "--quiet", "--workers", "1"]) == 0
    assert "K2 " in capsys.readouterr().out
    found = json.loads((place / "s" / "results.json").read_text())
    assert found["complete"]
    assert [item["name"] for item in found["contenders"]] == ["token", "K2", "K4"]
    flops = {arm["name"]: arm["runs"][0]["flops"] for arm in found["arms"]}
    assert flops["K2"] == pytest.approx(flops["token"], rel=0.1)
    for item in found["contenders"]:
        assert item["bits_per_byte"]["count"] == 1
    page = (place / "s" / "report.html").read_text()
    assert 'id="against-compute"' in page
    assert "://" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_overwrite_touches_no_comparison_that_is_running(
    place: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "tiny.yaml", "--arms", "recipe", "--seeds", "0", "--out", "c", "--quiet"]
    assert main(command) == 0
    before = sorted(path.name for path in (place / "c").iterdir())
    with RunFolder(Path("c")).locked():
        assert main([*command, "--overwrite"]) == 2
    assert "is still training in c; stop it first" in capsys.readouterr().err
    assert sorted(path.name for path in (place / "c").iterdir()) == before
    assert main([*command, "--overwrite"]) == 0
