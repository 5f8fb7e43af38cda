"""Every example runs, takes the loss it says, and leaves a plain model."""

import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from patchtrain import patch_loss_reference
from patchtrain.modeling import PatchLevel

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
STEPS = 6
# Arguments, patch size, passes of the model at patch level, and the length of held-out rows.
RUNS: dict[str, tuple[list[str], int, int, int | None]] = {
    "pytorch_loop": ([], 4, 4, 64),
    "pytorch_loop --carry": (["--carry"], 4, 4, 64),
    "trainer": ([], 4, 2 * 4, 256),  # two passes a step
    "accelerate_loop": ([], 4, 4, 64),
    "fabric_loop": ([], 4, 4, 64),
    "trl_sft": ([], 4, 3, None),
    "trl_sft --packing": (["--packing"], 4, 3, None),
    "continue_pretraining": ([], 2, 3, None),
}
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process; what it printed comes back."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Fabric sets it: so that it is taken back

    def run_example(name: str, *arguments: str) -> str:
        script = f"{name.split()[0]}.py"
        monkeypatch.setattr(sys, "argv", [script, "--steps", str(STEPS), *arguments])
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        return capsys.readouterr().out

    return run_example


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All training passes at patch level, each with its loss and that of the papers' formula."""
    found: list[dict[str, Any]] = []
    forward = PatchLevel._forward

    def watched(handle: PatchLevel, **inputs: Any) -> Any:
        if not torch.is_grad_enabled():  # the probe
            return forward(handle, **inputs)
        expected = by_formula(handle, **inputs)
        outputs = forward(handle, **inputs)
        found.append({**inputs, "K": handle.patch_size, "expected": expected, "got": outputs.loss})
        return outputs

    monkeypatch.setattr(PatchLevel, "_forward", watched)
    return found


@torch.no_grad()
def by_formula(
    handle: PatchLevel,
    input_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    num_items_in_batch: Any = None,
    **_: Any,
) -> Tensor:
    """A pass's share of the step's mean loss, from the logits of all patches."""
    K = handle.patch_size
    embeddings = handle.model.get_input_embeddings()(input_ids)
    inputs: dict[str, Tensor] = {
        "inputs_embeds": torch.stack([embeddings[:, slot::K] for slot in range(K)]).mean(0)
    }
    targets = labels[:, K:].unflatten(1, (-1, K)).clone()
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask.unflatten(1, (-1, K)).amax(-1)
    if position_ids is not None:
        inputs["position_ids"] = position_ids[:, ::K] // K
        targets[inputs["position_ids"][:, 1:] == 0] = -100
    logits = handle._plain_forward(**inputs).logits
    mean = patch_loss_reference(logits[:, :-1], targets)
    if num_items_in_batch is None:
        return mean
    return mean * (labels[:, 1:] != -100).sum() / num_items_in_batch


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_leaves_a_plain_model(
    name: str, run: Run, passes: list[dict[str, Any]], tmp_path: Path
) -> None:
    arguments, patch_size, count, length = RUNS[name]
    printed = run(name, *arguments, "--out", str(tmp_path))

    assert {one["K"] for one in passes} == {patch_size}
    assert len(passes) == count
    for one in passes:
        torch.testing.assert_close(one["got"].double(), one["expected"].double(), rtol=1e-4, atol=0)

    losses = [float(loss) for loss in re.findall(r"loss'?:? '?([\d.]+|nan|inf)", printed)]
    held_out = losses[-1]
    assert re.search(r"held-out token-level loss [\d.]+\n$", printed)
    assert all(4 < loss < 8 for loss in losses)  # a mean: no sum over passes, and none of means
    assert held_out < math.log(512)  # of a uniform guess
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not [key for key in model.config.to_dict() if "patch" in key]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size
    if length is not None:
        data = sys.modules["data"]
        rows = data.rows(256)[1].reshape(-1, length)
        assert data.held_out_loss(model, rows) == pytest.approx(held_out, abs=1e-3)


def test_fine_tuning_has_no_prompt_and_no_mixed_document_among_its_targets(
    run: Run, passes: list[dict[str, Any]], tmp_path: Path
) -> None:
    run("trl_sft", "--packing", "--out", str(tmp_path))
    for one in passes:
        assert bool((one["labels"] == -100).any())
        starts = (one["position_ids"][0] == 0).nonzero().flatten()
        assert len(starts) > 1  # several functions in a row
        assert bool((starts % one["K"] == 0).all())


def test_accelerate_and_fabric_are_the_same_loop(run: Run, tmp_path: Path) -> None:
    printed = [run(name, "--out", str(tmp_path)) for name in ("accelerate_loop", "fabric_loop")]
    assert printed[0] == printed[1]


def test_the_own_module_trains_on_the_exact_loss(run: Run, tmp_path: Path) -> None:
    printed = run("own_module", "--out", str(tmp_path / "own.pt"))
    held_out = float(printed.split()[-1])
    assert re.findall(r"patch size (\d)", printed) == ["4"] * 4 + ["1"] * 2

    gpt = runpy.run_path(str(FOLDER / "own_module.py"))["GPT"]
    data = sys.modules["data"]
    model = gpt(len(data.tokenizer()))
    model.load_state_dict(torch.load(tmp_path / "own.pt"))
    ids = data.rows(256)[1][:4]

    def hidden(embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        return model.body(embeddings + model.positions.weight[:length], mask=mask)

    with torch.no_grad():
        tokens = ids.reshape(-1, 64)
        logits = model.head(hidden(model.embed(tokens)))[:, :-1]
        token_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch.testing.assert_close(model.loss(tokens), token_loss)
        pooled = model.embed(ids).unflatten(1, (64, 4)).mean(2)
        logits = model.head(hidden(pooled))
        expected = patch_loss_reference(logits[:, :-1], ids[:, 4:].unflatten(1, (63, 4)))
        torch.testing.assert_close(model.loss(ids, 4).double(), expected, rtol=1e-5, atol=0)
        # Passes of a step, each divided by the targets of all, add up to the step's mean.
        parts = sum(model.loss(part, 4, total=ids[:, 4:].numel()) for part in ids.split(1))
        torch.testing.assert_close(parts.double(), expected, rtol=1e-5, atol=0)
        rows = data.rows(256)[1].reshape(-1, 64)
        assert float(model.loss(rows)) == pytest.approx(held_out, abs=1e-3)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_is_short_and_says_how_to_run_it(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    if script.stem == "data":
        return
    assert script.stem in {name.split()[0] for name in RUNS} | {"own_module"}
    assert re.search(
        rf"^    (python|accelerate launch) examples/{script.name} ", text, re.MULTILINE
    )
    assert f"]({script.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")
