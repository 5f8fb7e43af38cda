"""Settings beyond the papers through the command line: planned, trained, resumed, rehearsed."""

from pathlib import Path

import pytest
import torch

from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.runs import RunFolder
from tests.cli.corpus import write_corpus
from tests.cli.test_resume import stop_at
from tests.cli.test_train import refused, write_recipe

SETTINGS = [
    "plan.rows=tokens",
    "plan.embedding_scale=sqrt",
    "plan.optimizer_at_switch=second",
    "plan.pool_weights=recent",
    "plan.patch_rate=1.5",
    "plan.rewarm_steps=4",
    "plan.phase=random",
    "plan.token_share=0.25",
    "plan.hybrid_share=0.5",
    "plan.freeze_head_steps=3",
    "plan.head_scale_at_switch=1.5",
    "plan.pool_order=rotate",
    "plan.average_at_switch=0.5",
    "plan.position_scale=patch",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_corpus(folder / "corpus.txt")
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=300)
    return folder / "store"


def test_a_run_with_all_settings_is_planned_and_can_be_interrupted(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    assert main(["train", recipe, "--dry-run", *SETTINGS]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "embedding_scale sqrt, pool_weights recent, pool_order rotate, patch_rate 1.5" in shown
    assert "rewarm_steps 4, phase random, position_scale patch" in shown
    assert "at a switch: second" in shown
    whole = [*SETTINGS, f"out={tmp_path / 'whole'}", "--quiet"]
    assert main(["train", recipe, *whole]) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 9)
        assert main(["train", recipe, *SETTINGS, "--quiet"]) == 143
    refused(
        capsys, ["train", recipe, *SETTINGS[:-1], "--quiet", "--resume"], 2,
        "plan.position_scale is None and was 'patch'",
    )  # fmt: skip
    assert main(["train", recipe, *SETTINGS, "--quiet", "--resume"]) == 0
    weights = [torch_weights(tmp_path / name) for name in ("whole", "run")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert RunFolder.open(tmp_path / "run").info()["plan"]["rewarm_steps"] == 4


def torch_weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "model" / "model.safetensors")


def test_a_long_ramp_can_be_rehearsed(store: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, store))
    words = ["plan.rewarm_steps=4", "plan.position_scale=patch", "rehearse=true", "--quiet"]
    assert main(["train", recipe, *words]) == 0
    assert RunFolder.open(tmp_path / "run-rehearsal").info()["plan"]["rewarm_steps"] == 0
