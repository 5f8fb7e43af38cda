"""PatchTrainer against a plain loop: same weights, stages, counts, and a plain result."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from patchtrain import (
    PatchConfig,
    PatchTrainer,
    PatchtrainError,
    UsageError,
    patch_loss_reference,
    patch_targets,
)
from patchtrain.data.batches import spread
from patchtrain.data.unigram import unigram_entropy
from patchtrain.patches import hybrid_targets
from patchtrain.presets import by_size
from patchtrain.runs import RunFolder
from tests.models import VOCAB, tiny_model
from tests.training.several import call

T = 8
COMPILER = "ACCELERATE_DYNAMO_BACKEND"  # what accelerate reads


def corpus(length: int = 6000, seed: int = 0) -> np.ndarray:
    """Tokens with something to learn: each is likely the previous plus one."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(length) < 0.8, 1, rng.integers(0, VOCAB, length))
    return (np.cumsum(steps) % VOCAB).astype(np.uint16)


def trainer(folder: Path, model: Any = None, **values: Any) -> PatchTrainer:
    plan = {
        "preset": "superposition",
        "context_length": T,
        "tokens_per_step": 8 * T,
        "patch_size": 2,
        "step_fraction": 0.4,
        "steps": 10,
        **values.pop("plan", {}),
    }
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True,
                # By default both would follow every step.
                "eval_steps": 3, "save_steps": 5}  # fmt: skip
    args = PatchConfig(str(folder), plan=plan, use_cpu=True, **{**settings, **values})
    return PatchTrainer(model or tiny_model(), args, corpus(), eval_dataset=corpus(500, seed=1))


def plain_loop(trained: PatchTrainer, model: Any) -> list[float]:
    """What the trainer must do, as a page of ordinary PyTorch over the papers' formula."""
    plan, args = trained.plan, trained.args
    decay = trained.get_decay_parameter_names(model)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n in decay], "weight_decay": args.weight_decay},
        {"params": [p for n, p in named.items() if n not in decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    losses: list[float] = []
    after: list[list[torch.Tensor]] = []
    for step in range(plan.total_steps):
        stage = plan.stage_at(step)
        if step == stage.first_step > 0 and plan.spec.optimizer_at_switch == "reset":
            optimizer.state.clear()
        if step == stage.first_step > 0 and plan.spec.optimizer_at_switch == "second":
            for weight in model.parameters():
                optimizer.state[weight]["exp_avg"] *= 0.0
        if step == stage.first_step > 0 and plan.spec.average_at_switch:
            count = round(plan.spec.average_at_switch * plan.stages[stage.index - 1].steps)
            with torch.no_grad():
                for at, weight in enumerate(model.parameters()):
                    weight.copy_(torch.stack([each[at] for each in after[-count:]]).mean(0))
        if step == stage.first_step > 0:
            model.lm_head.weight.data *= plan.spec.head_scale_at_switch
        ids = torch.from_numpy(trained.batches.step(step))
        K, scale, weights = stage.patch_size, stage.position_scale, stage.slot_weights
        tail = stage.tail
        if plan.spec.token_share and step in (0, 2):
            K, scale, weights, tail = 1, 1, (1.0,), 0
            assert ids.shape == (8, T)
        embeddings = model.get_input_embeddings()(ids)
        past = ids.shape[1] - tail
        places = embeddings[:, :past].view(len(ids), T - tail, K, -1).unbind(2)
        if stage.pool_order == "rotate" and K > 1:
            places = [e.roll((K - 1 - k) * e.shape[-1] // K, -1) for k, e in enumerate(places)]
        slots = torch.tensor((stage.pool_weights if K > 1 else None) or (1.0,) * K)
        pooled = (torch.stack(tuple(places), 2) * slots[:, None]).mean(2)
        pooled = pooled * (stage.embedding_scale if K > 1 else 1.0)
        pooled = torch.cat([pooled, embeddings[:, past:]], 1)
        order = torch.arange(T - tail) * scale
        order = torch.cat([order, (T - tail) * scale + torch.arange(tail)])
        positions = {
            "position_ids": order[None],
            "attention_mask": torch.ones(1, 1, T, T, dtype=torch.bool).tril(),
        }
        logits = model(inputs_embeds=pooled, **positions).logits
        targets = hybrid_targets(ids, K, tail) if tail else patch_targets(ids, K)
        loss = patch_loss_reference(logits[:, :-1], targets, weights)
        loss.backward()
        body = set(model.model.parameters()) - {model.get_input_embeddings().weight}
        kept = {"head": {model.lm_head.weight}, "body": body}
        for part, parameters in kept.items():
            if stage.index > 0 and step - stage.first_step < getattr(
                plan.spec, f"freeze_{part}_steps"
            ):
                for weight in parameters:
                    weight.grad = None
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * plan.rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        after.append([weight.detach().double().clone() for weight in model.parameters()])
    return losses


@pytest.mark.parametrize(
    "plan",
    [
        {"preset": "superposition"},
        {"preset": "superposition", "optimizer_at_switch": "reset", "slot_weights": [3, 1]},
        {"preset": "paper", "patch_fraction": 0.5, "step_fraction": None},
        {"stages": [[4, 0.3], [2, 0.3], [1, 0.4]], "step_fraction": None},
        {"patch_fraction": 0.0, "step_fraction": None},
        {"embedding_scale": "sqrt", "rewarm_steps": 3},
        {"pool_weights": "recent", "patch_rate": 2.0},
        {"pool_order": "rotate", "stages": [[4, 0.4], [2, 0.3], [1, 0.3]], "step_fraction": None},
        {"position_scale": "patch", "patch_size": 4},
        {"hybrid_share": 0.5, "patch_size": 4, "token_share": 0.5, "slot_weights": "power"},
        {"hybrid_share": 0.25, "step_fraction": 1.0, "position_scale": "patch"},
        {
            "token_share": 0.5,
            "embedding_scale": "sqrt",
            "position_scale": "patch",
            "slot_weights": [3, 1],
        },
        {"freeze_head_steps": 3, "optimizer_at_switch": "reset"},
        {"freeze_body_steps": 2, "head_scale_at_switch": 1.5},
        {
            "average_at_switch": 0.75,
            "stages": [[4, 0.4], [2, 0.3], [1, 0.3]],
            "step_fraction": None,
        },
        {
            "optimizer_at_switch": "second",
            "stages": [[4, 0.4], [2, 0.3], [1, 0.3]],
            "step_fraction": None,
        },
    ],
)
def test_weights_and_losses_equal_a_plain_loop(tmp_path: Path, plan: dict[str, Any]) -> None:
    trained = trainer(tmp_path, plan=plan, logging_steps=1)
    trained.train()
    expected = tiny_model()
    losses = plain_loop(trained, expected)
    rows = RunFolder.open(tmp_path).metrics("train")
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    for (name, got), want in zip(
        trained.model.named_parameters(), expected.parameters(), strict=True
    ):
        # Adam makes a step of about the rate, 1e-2, also of a gradient that is nearly rounding.
        torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-4, msg=name)


class Kernels(TorchDispatchMode):
    """Counts what does nearly all of the work: products, attention, normalisation, softmax."""

    HEAVY = ("mm", "bmm", "attention", "softmax", "embedding", "silu", "rsqrt", "nll_loss")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in self.HEAVY):
            shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
            self.counts[f"{func} {shapes}"] += 1
        return func(*args, **(kwargs or {}))


def test_a_token_level_step_runs_the_kernels_of_the_bare_model_and_no_more(tmp_path: Path) -> None:
    def counted(steps: int) -> Counter[str]:
        plan = {"patch_fraction": 0.0, "step_fraction": None, "steps": steps}
        trained = trainer(tmp_path / str(steps), plan=plan, eval_strategy="no", save_strategy="no")
        with Kernels() as kernels:
            trained.train()
        return kernels.counts

    model, ids = tiny_model().train(), torch.zeros(4, T, dtype=torch.long)
    with Kernels() as bare:
        model(input_ids=ids, labels=ids).loss.backward()
    assert sum(bare.counts.values()) > 40
    five, two = counted(5), counted(2)  # what is done once, such as the probe, is in both
    assert {name: five[name] - two[name] for name in five if five[name] > two[name]} == {
        name: 3 * 2 * count
        for name, count in bare.counts.items()  # two passes a step
    }


def test_smaller_passes_give_the_same_run(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", per_device_train_batch_size=8)
    parts = trainer(tmp_path / "parts", per_device_train_batch_size=2)
    assert [parts.plan.passes(stage) for stage in parts.plan.stages] == [4, 4]
    whole.train()
    parts.train()
    for got, want in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-5)


def _one_of_two(folder: Path) -> None:
    run = trainer(folder, per_device_train_batch_size=2, logging_steps=1)
    run.train()
    run.export(folder / "model")
    run.accelerator.end_training()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    call(2, _one_of_two, tmp_path / "two")
    one = trainer(tmp_path / "one", logging_steps=1)
    one.train()
    both = [RunFolder.open(tmp_path / name) for name in ("one", "two")]
    for event in ("train", "eval"):
        first, second = (
            [(row["step"], row["tokens"], row["flops"]) for row in run.metrics(event)]
            for run in both
        )
        assert first == second
    losses = [[row["loss"] for row in run.metrics("train")] for run in both]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "model")
    for got, want in zip(exported.parameters(), one.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-5)


def test_the_run_folder_counts_tokens_positions_and_flops(tmp_path: Path) -> None:
    run = trainer(tmp_path, logging_steps=1)
    run.train()
    folder = RunFolder.open(tmp_path)
    rows = folder.metrics("train")
    assert [row["patch_size"] for row in rows] == [2] * 4 + [1] * 6
    assert rows[3]["tokens"] == 4 * 8 * T * 2
    assert rows[-1]["tokens"] == run.plan.total_tokens == (4 * 2 + 6) * 8 * T
    assert rows[-1]["positions"] == 10 * 8 * T
    by_stage = [run.size.flops_per_position(T, K).total * steps for K, steps in ((2, 4), (1, 6))]
    assert rows[-1]["flops"] == pytest.approx(8 * T * sum(by_stage))
    assert run.state.total_flos == pytest.approx(rows[-1]["flops"])
    assert all(row["tokens_per_s"] > 0 for row in rows)
    entropy = folder.info()["unigram_entropy"]
    assert entropy == unigram_entropy(run.batches.tokens) > 0
    learned = [entropy - row["loss"] if row["patch_size"] == 2 else None for row in rows]
    assert [row.get("beyond_unigram") for row in rows] == learned
    (switch,) = folder.metrics("switch")
    assert (switch["step"], switch["stage"], switch["patch_size"]) == (4, 1, 1)
    evals = folder.metrics("eval")
    assert {4, 10} <= {row["step"] for row in evals}
    assert all(("patch_loss" in row) == (row["patch_size"] == 2) for row in evals)
    info = folder.info()
    assert info["status"] == "finished"
    assert info["plan"]["total_tokens"] == run.plan.total_tokens
    seconds = [row["seconds"] for row in folder.metrics()]
    assert seconds == sorted(seconds)


def test_evaluation_is_the_models_own_loss_and_changes_nothing(tmp_path: Path) -> None:
    with_evals = trainer(tmp_path / "a", eval_steps=1, eval_tokens=400)
    with_evals.train()
    without = trainer(tmp_path / "b", eval_strategy="no")
    without.train()
    for got, want in zip(with_evals.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(got, want)
    last = RunFolder.open(tmp_path / "a").metrics("eval")[-1]
    windows = torch.from_numpy(spread(corpus(500, seed=1), 400, T + 1).astype(np.int64))
    model = with_evals.model.eval()
    losses = []
    with torch.no_grad():
        for window in windows:
            logits = model(input_ids=window[None, :-1]).logits[0]
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    assert last["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_the_patch_loss_of_an_evaluation_is_the_stages_own(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan={"step_fraction": 1.0, "patch_size": 4}, eval_tokens=320)
    run.train()
    last = RunFolder.open(tmp_path).metrics("eval")[-1]
    ids = torch.from_numpy(spread(corpus(500, seed=1), 320, 4 * T).astype(np.int64))
    model = run.model.eval()
    with torch.no_grad():
        pooled = model.get_input_embeddings()(ids).view(len(ids), T, 4, -1).mean(2)
        logits = model(inputs_embeds=pooled).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4))
    assert last["patch_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_it_learns_and_the_export_is_a_plain_model(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan={"steps": 60}, learning_rate=3e-2)
    run.train()
    rows = RunFolder.open(tmp_path).metrics("eval")
    assert rows[-1]["loss"] < 0.6 * math.log(VOCAB) < rows[0]["loss"]
    exported = run.export(tmp_path / "model")
    assert "forward" not in run.model.__dict__
    names = {file.name for file in exported.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert "patch" not in (exported / "config.json").read_text()
    assert json.loads((exported / "config.json").read_text())["use_cache"] is True
    again = AutoModelForCausalLM.from_pretrained(exported)
    assert type(again) is type(run.model)
    ids = torch.arange(T)[None] % VOCAB
    torch.testing.assert_close(again(ids).logits, run.model.eval()(ids).logits)


def test_bf16_accumulation_checkpointing_and_compile_settings_train(tmp_path: Path) -> None:
    run = trainer(tmp_path, bf16=True, activation_checkpointing=True, per_device_train_batch_size=2)
    run.train()
    losses = [row["loss"] for row in RunFolder.open(tmp_path).metrics("eval")]
    assert all(math.isfinite(loss) for loss in losses)
    plain = trainer(tmp_path / "plain")
    plain.train()
    reference = [row["loss"] for row in RunFolder.open(tmp_path / "plain").metrics("eval")]
    assert losses == pytest.approx(reference, rel=0.05)


def test_existing_arguments_are_enough(tmp_path: Path) -> None:
    args = PatchConfig(
        str(tmp_path),
        plan={"patch_size": 2, "patch_fraction": 0.5},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=20,
        warmup_steps=3,
        use_cpu=True,
    )
    run = PatchTrainer(tiny_model(max_position_embeddings=16), args, corpus())
    assert run.plan.context_length == 16
    assert run.plan.spec.tokens_per_step == 8 * 16
    assert run.plan.total_steps == 20
    assert run.plan.spec.warmup_steps == 3


def test_weights_that_are_no_numbers_stop_the_run_at_its_first_step(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    run = trainer(tmp_path, model=tiny_model())
    run.model.load_state_dict(model.state_dict())
    with pytest.raises(
        PatchtrainError, match=r"loss became nan at step 1 \(patches of 2\), before"
    ):
        run.train()
    assert RunFolder.open(tmp_path).info()["status"] == "failed"
    assert "forward" not in run.model.__dict__


def test_resuming_seeks_to_the_step_and_gives_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", save_steps=3, save_total_limit=9)
    whole.train()
    for step in (6, 3):  # going back sets what came later aside
        again = trainer(tmp_path / "whole", save_strategy="no")
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
        again.train(checkpoint, allow_change=["logging"])
        for got, want in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(got, want)
        steps = [row["step"] for row in RunFolder.open(tmp_path / "whole").metrics("eval")]
        assert steps == sorted(steps)


@pytest.mark.parametrize("way", ["arguments", "environment"])
def test_a_compiled_run_exports_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv(COMPILER, "no" if way == "arguments" else "EAGER")
    asked = {"torch_compile": True, "torch_compile_backend": "eager"}
    run = trainer(tmp_path, **(asked if way == "arguments" else {}))
    thrown_away = []
    reset = torch.compiler.reset
    monkeypatch.setattr(torch.compiler, "reset", lambda: (thrown_away.append(1), reset()))
    run.train()
    assert thrown_away == [1]  # at the switch
    monkeypatch.setenv(COMPILER, "no")  # the arguments set it too
    eager = trainer(tmp_path / "eager")
    eager.train()
    exported = AutoModelForCausalLM.from_pretrained(run.export(tmp_path / "model"))
    for name, want in eager.model.state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], want, rtol=2e-3, atol=2e-5)


def test_the_validation_loss_does_not_depend_on_the_plan(tmp_path: Path) -> None:
    losses = [
        trainer(tmp_path / str(K), plan={"patch_size": K}, eval_tokens=200).evaluate()["eval_loss"]
        for K in (1, 2, 4)
    ]
    assert losses[0] == losses[1] == losses[2]


def test_validation_text_shorter_than_a_patch_sequence(tmp_path: Path) -> None:
    run = trainer(tmp_path, plan={"patch_size": 4}, save_strategy="no")
    run.eval_tokens = run.eval_tokens[: 3 * T]
    run.train()
    rows = RunFolder.open(tmp_path).metrics("eval")
    assert rows
    assert all("patch_loss" not in row and math.isfinite(row["loss"]) for row in rows)


def test_the_callers_arguments_stay_as_they_were(tmp_path: Path) -> None:
    args = PatchConfig(
        str(tmp_path),
        plan={"patch_size": 2, "patch_fraction": 0.5, "context_length": T},
        gradient_accumulation_steps=4,
        max_steps=10,
        use_cpu=True,
    )
    first, second = (PatchTrainer(tiny_model(), args, corpus()) for _ in range(2))
    assert first.plan == second.plan
    assert args.gradient_accumulation_steps == 4


def test_data_seed_is_the_order_of_the_data(tmp_path: Path) -> None:
    runs = [trainer(tmp_path / str(i), seed=7, data_seed=i) for i in (0, 1)]
    assert runs[0].batches.seed == 0
    assert not np.array_equal(runs[0].batches.step(0), runs[1].batches.step(0))
    assert trainer(tmp_path / "x", seed=7).batches.seed == 7


@pytest.mark.parametrize(
    "values",
    [{"fp16": True}, {"label_smoothing_factor": 0.1}, {"use_liger_kernel": True},
     {"auto_find_batch_size": True}],
)  # fmt: skip
def test_what_a_patch_level_stage_cannot_honour_is_refused(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} is not supported"):
        trainer(tmp_path, **values)


def test_a_share_of_warm_up_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say of which stage"):
        trainer(tmp_path, warmup_steps=0.2)


def test_resuming_at_the_end_and_at_the_switch_keeps_one_record(tmp_path: Path) -> None:
    whole = trainer(tmp_path, save_steps=4, save_total_limit=9, eval_on_start=True)
    whole.train()
    rows = RunFolder.open(tmp_path).metrics()
    for step in (10, 4):
        again = trainer(tmp_path, save_strategy="no", save_total_limit=9)
        again.train(str(tmp_path / f"checkpoint-{step}"), allow_change=["logging"])
        for got, want in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(got, want)
        after = RunFolder.open(tmp_path).metrics()
        keys = [(row["event"], row["step"]) for row in after]
        assert len(set(keys)) == len(keys)
        assert {("switch", 4), ("eval", 0), ("eval", 10)} <= set(keys)
        assert len(after) >= len(rows) - 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {
                "plan": {
                    "preset": "paper",
                    "context_length": 256,
                    "tokens_per_step": 1024,
                    "max_epochs": 9,
                }
            },
            "max_position_embeddings",
        ),
        ({"plan": {"patch_size": 3, "tokens_per_step": 100}}, "not a multiple"),
        ({"plan": {"steps": 500}}, "epochs"),
        ({"plan": {"stepz": 3}}, "did you mean 'steps'"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path / "run", **values)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("backend", ["torch", "plain"])
def test_a_forced_loss_backend_trains_the_same_and_is_recorded(
    backend: str, tmp_path: Path
) -> None:
    expected = trainer(tmp_path / "auto")
    expected.train()
    forced = trainer(tmp_path / "forced", loss_backend=backend)
    forced.train()
    assert RunFolder(tmp_path / "auto").info()["loss_backend"]["name"] == "chunked"
    assert RunFolder(tmp_path / "forced").info()["loss_backend"]["name"] == backend
    for got, want in zip(forced.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_loss_backend_that_cannot_run_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'fastest' is not known; use auto, chunked"):
        trainer(tmp_path, loss_backend="fastest")
    with pytest.raises(UsageError, match="runs on a GPU"):
        trainer(tmp_path, loss_backend="liger")


def test_positions_beyond_the_models_are_refused_before_training(tmp_path: Path) -> None:
    plan = {"position_scale": "patch", "patch_size": 4}
    with pytest.raises(UsageError, match=r"positions up to 28, beyond .* of 28; use a shorter"):
        trainer(tmp_path, tiny_model(max_position_embeddings=28), plan=plan)
    with pytest.raises(UsageError, match="GPT2LMHeadModel cannot be trained with position_scale"):
        trainer(tmp_path, tiny_model("gpt2"), plan=plan)


def test_compiled_code_keeps_to_one_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"token_share": 0.25}
    monkeypatch.setenv(COMPILER, "no")
    trainer(tmp_path, plan=plan)
    with pytest.raises(UsageError, match="token_share cannot be used with torch_compile"):
        trainer(tmp_path, plan=plan, torch_compile=True)
    monkeypatch.setenv(COMPILER, "EAGER")
    with pytest.raises(UsageError, match=r"token_share cannot be used with .* dynamo_backend"):
        trainer(tmp_path, plan=plan)


def test_without_a_plan_it_is_the_default_for_the_models_size(tmp_path: Path) -> None:
    args = PatchConfig(str(tmp_path), use_cpu=True, per_device_train_batch_size=2, max_steps=10)
    run = PatchTrainer(tiny_model(), args, corpus())
    assert run.plan.spec.preset == "patchtrain"
    assert [(stage.patch_size, stage.steps) for stage in run.plan.stages] == [
        (by_size(run.size.parameters)[0], 3), (1, 7),
    ]  # fmt: skip
