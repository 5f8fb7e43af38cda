"""Safe to open: a store, run, model, recipe or text from a stranger executes nothing.

Each hostile file would make a folder, the mark, if anything in it were executed. ``test_the_traps``
shows that they would.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from tests.cli.corpus import write_corpus
from tests.evaluation.tiny import save_tiny_model, save_tiny_run
from tests.fuzzing.world import TINY


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


CODE = """
from pathlib import Path
Path({mark!r}).mkdir()
from transformers import LlamaConfig as TrapConfig, LlamaForCausalLM as TrapModel
from transformers import PreTrainedTokenizerFast as TrapTokenizer
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A user who says yes to everything; nobody must ask."""
    typed = io.StringIO("y\n" * 50)
    monkeypatch.setattr("sys.stdin", typed)
    return typed


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("safe")
    write_corpus(folder / "corpus.txt", sentences=3000)
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="byte")
    return folder / "store"


def pickled(mark: Path) -> bytes:
    data = io.BytesIO()
    torch.save({"weight": Trap(mark)}, data)
    return data.getvalue()


def only_pickles(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(mark))


def an_index_of_pickles(folder: Path, mark: Path) -> None:
    only_pickles(folder, mark)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def an_index_of_elsewhere(folder: Path, mark: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_named_pickle(folder: Path, mark: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickled(mark))
    change(folder / "config.json", transformers_weights="adapter_model.bin")


def code_of_its_own(folder: Path, mark: Path) -> None:
    (folder / "trap.py").write_text(CODE.format(mark=str(mark)))
    names = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapModel"}
    change(folder / "config.json", auto_map=names, model_type="trap")


def a_kernel(folder: Path, mark: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernels")


def an_adapter(folder: Path, mark: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickled(mark))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


REFUSED: dict[Callable[[Path, Path], None], str] = {
    only_pickles: "are pickled (pytorch_model.bin)",
    an_index_of_pickles: "names 'pytorch_model.bin', which is no safetensors file",
    an_index_of_elsewhere: "names '../elsewhere.safetensors', which is no",
    a_named_pickle: "names a weights file of its own",
    code_of_its_own: "needs Python code that comes with it",
    a_kernel: "asks for code from the hub (somebody/kernels)",
    an_adapter: "holds an adapter",
}


def commands(folder: Path, store: Path, text: Path) -> list[list[str]]:
    """Every way to open a model."""
    recipe = folder.parent / "recipe.yaml"
    values = TINY.replace("STORE", str(store)).replace("OUT", str(folder.parent / "out"))
    head, _, rest = values.partition("  config:")
    plan = rest[rest.index("plan:") :]
    recipe.write_text(f"{head}  pretrained: {folder}\n  new_tokenizer: true\n{plan}")
    return [
        ["eval", str(folder), "--text", str(text)],
        ["generate", str(folder), "The"],
        ["train", str(recipe), "--dry-run"],
        ["train", str(recipe), "--quiet"],
    ]


@pytest.mark.parametrize("trap", REFUSED, ids=lambda trap: trap.__name__)
def test_a_hostile_model_is_refused_in_one_line(
    trap: Callable[[Path, Path], None],
    mark: Path,
    store: Path,
    tmp_path: Path,
    answers: io.StringIO,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    trap(folder, mark)
    capsys.readouterr()
    for argv in commands(folder, store, tmp_path / "recipe.yaml"):
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert REFUSED[trap] in error
        assert error.startswith("patchtrain: error: ")
        assert error.count("\n") == 1
    assert not mark.exists()
    assert answers.tell() == 0
    assert not (tmp_path / "out").exists()


def test_code_beside_a_model_of_a_known_kind_is_left_alone(
    mark: Path, store: Path, tmp_path: Path, answers: io.StringIO
) -> None:
    """Many checkpoints carry the code they had before transformers knew their kind."""
    folder = save_tiny_model(tmp_path / "model", vocab_size=300)
    code_of_its_own(folder, mark)
    change(folder / "config.json", model_type="llama")
    names = ["trap.TrapTokenizer", "trap.TrapTokenizer"]
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": names})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(mark=str(mark)))
    for argv in commands(folder, store, tmp_path / "recipe.yaml"):
        assert main(argv) == 0, argv
    assert not mark.exists()
    assert answers.tell() == 0


def test_a_tokenizer_with_code_runs_none(
    mark: Path,
    store: Path,
    tmp_path: Path,
    answers: io.StringIO,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hostile = tmp_path / "store"
    shutil.copytree(store, hostile)
    for folder in (hostile / "tokenizer", tmp_path / "tokenizer"):
        folder.mkdir(exist_ok=True)
        shutil.copy(store / "tokenizer" / "tokenizer.json", folder)
        (folder / "trap.py").write_text(CODE.format(mark=str(mark)))
        config = {"auto_map": {"AutoTokenizer": ["trap.TrapTokenizer", "trap.TrapTokenizer"]},
                  "tokenizer_class": "TrapTokenizer", "eos_token": "<|endoftext|>"}  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    text = tmp_path / "a.txt"
    text.write_text("some text")
    for number, tokenizer in enumerate((tmp_path / "tokenizer", hostile)):
        out = tmp_path / f"new{number}"
        main(["prepare", str(text), "--out", str(out), "--tokenizer", str(tokenizer),
              "--validation-fraction", "0"])  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY.replace("STORE", str(hostile)).replace("OUT", str(tmp_path / "out")))
    capsys.readouterr()
    assert main(["train", str(recipe), "--dry-run"]) == 2
    assert "trap.py is not of this store" in capsys.readouterr().err
    assert not mark.exists()
    assert answers.tell() == 0


def test_templates_and_pickles_in_a_run_are_left_alone(
    mark: Path, store: Path, tmp_path: Path, answers: io.StringIO
) -> None:
    run = save_tiny_run(tmp_path / "run", store)
    escape = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        f"{{{{ cycler.__init__.__globals__.os.mkdir({str(mark)!r}) }}}}"
    )
    (run / "model" / "chat_template.jinja").write_text(escape)
    (run / "checkpoint-1").mkdir()
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin"):
        (run / "checkpoint-1" / name).write_bytes(pickled(mark))
        (run / "model" / name).write_bytes(pickled(mark))
    text = tmp_path / "a.txt"
    text.write_text("some text")
    assert main(["report", str(run)]) == 0
    assert main(["generate", str(run), "The"]) == 0
    assert main(["eval", str(run), "--text", str(text)]) == 0
    assert main(["report", str(run)]) == 0
    assert not mark.exists()
    assert answers.tell() == 0


def test_python_in_a_recipe_is_not_run(
    mark: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = TINY.replace("STORE", str(store)).replace("OUT", str(tmp_path / "out"))
    recipe.write_text(text + f"seed: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert main(["train", str(recipe), "--dry-run"]) == 2
    assert "line 23: not valid YAML: could not determine a constructor" in capsys.readouterr().err
    assert not mark.exists()


def test_a_script_in_a_dataset_is_not_run(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(CODE.format(mark=str(mark)))
    (folder / "rows.pkl").write_bytes(pickle.dumps(Trap(mark)))
    for source in (f"hf:{folder}", str(folder)):
        main(["prepare", source, "--out", str(tmp_path / "store"), "--train-tokenizer", "byte"])
    assert not mark.exists()


def test_results_stay_in_the_run(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_tiny_run(tmp_path / "run", store)
    (tmp_path / "elsewhere").write_text("mine")
    (run / "evaluation.json").symlink_to(tmp_path / "elsewhere")
    text = tmp_path / "a.txt"
    text.write_text("some text")
    assert main(["eval", str(run), "--text", str(text)]) == 2
    assert "evaluation.json is a link to another file" in capsys.readouterr().err
    (run / "evaluation.json").unlink()
    (tmp_path / "mine.html").write_text("mine")
    (run / "report.html").symlink_to(tmp_path / "mine.html")
    assert main(["report", str(run)]) == 0
    assert (tmp_path / "mine.html").read_text() == "mine"
    for name in ("../x", "/x", "a/b", "..", ".hidden", "", "a\0b"):
        assert main(["eval", str(run), "--text", str(text), "--name", name]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.txt", "elsewhere", "mine.html", "run"]  # fmt: skip


def test_the_traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, LlamaConfig

    monkeypatch.setattr(LlamaConfig, "_auto_class", None)  # which the trap changes
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(AttributeError):
        torch.load(io.BytesIO(pickled(first)), weights_only=False)["weight"].shape  # noqa: B018
    folder = save_tiny_model(tmp_path / "model")
    code_of_its_own(folder, second)
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert first.exists()
    assert second.exists()
