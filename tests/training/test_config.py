"""Arguments of an existing script: each is followed, or refused by name."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from patchtrain import PatchConfig, PatchTrainer, UsageError
from tests.models import tiny_model
from tests.training.test_trainer import corpus, trainer


@pytest.mark.parametrize(
    "name",
    ["compute_loss_func", "data_collator", "compute_metrics", "preprocess_logits_for_metrics"],
)
def test_what_would_not_be_used_is_refused(tmp_path: Path, name: str) -> None:
    args = PatchConfig(str(tmp_path), plan={"context_length": 8}, max_steps=4, use_cpu=True)
    PatchTrainer(tiny_model(), args, corpus(), **{name: None})
    with pytest.raises(UsageError, match=f"does not use {name}: .*; leave it out"):
        PatchTrainer(tiny_model(), args, corpus(), **{name: lambda *_: 1 / 0})


def test_a_loss_of_a_subclass_is_refused(tmp_path: Path) -> None:
    class Other(PatchTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError

    args = PatchConfig(str(tmp_path), plan={"context_length": 8}, max_steps=4, use_cpu=True)
    with pytest.raises(UsageError, match="does not call compute_loss"):
        Other(tiny_model(), args, corpus())


class NoLabels(LlamaForCausalLM):
    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, inputs_embeds=inputs_embeds, **kwargs)


class Without(NoLabels):
    def forward(  # type: ignore[override]
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        use_cache: Any = None,
    ) -> Any:
        return super().forward(
            input_ids, inputs_embeds, attention_mask=attention_mask, position_ids=position_ids
        )


def test_a_model_without_a_loss_of_its_own_is_refused_before_training(tmp_path: Path) -> None:
    config = tiny_model().config
    with pytest.raises(UsageError, match=r"Without\.forward takes no labels"):
        trainer(tmp_path / "refused", Without(config))
    trainer(tmp_path / "taken", NoLabels(config)).train()  # it hands them on


@pytest.mark.parametrize(
    ("asked", "plan", "schedule"),
    [
        ("linear", {}, "cosine"),  # what transformers has where nobody asks: the preset's
        ("linear", {"preset": "superposition"}, "wsd"),
        ("cosine", {"preset": "superposition"}, "cosine"),
        ("constant", {}, "constant"),
        ("constant_with_warmup", {}, "constant"),
        ("warmup_stable_decay", {}, "wsd"),
        ("constant", {"schedule": "cosine"}, "cosine"),  # the plan is nearer
    ],
)
def test_the_schedule_follows_the_arguments(
    tmp_path: Path, asked: str, plan: dict[str, Any], schedule: str
) -> None:
    plan = {"context_length": 8, "tokens_per_step": 64, "patch_size": 2, **plan}
    args = PatchConfig(
        str(tmp_path), plan=plan, max_steps=20, lr_scheduler_type=asked, use_cpu=True
    )
    assert PatchTrainer(tiny_model(), args, corpus()).plan.spec.schedule == schedule


def test_another_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lr_scheduler_type=polynomial is not supported; leave"):
        PatchConfig(str(tmp_path), lr_scheduler_type="polynomial")
