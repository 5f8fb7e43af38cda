"""What a run's record says, where training did not go as it usually does."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from patchtrain.runs import RunFolder
from tests.training.test_trainer import corpus, trainer


class StopsAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= self.step
        return control


@pytest.mark.parametrize(("step", "level"), [(2, "patch"), (6, "token")])
def test_a_run_that_a_callback_ends_is_not_recorded_as_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, level: str
) -> None:
    run = trainer(tmp_path, logging_steps=1)
    run.add_callback(StopsAt(step))
    run.train()
    info = RunFolder.open(tmp_path).info()
    assert info["status"] == "interrupted"
    assert info["flops"] == run.size.flops(run.plan, step).total < run.size.flops(run.plan).total
    assert f"a callback ended training after step {step} of 10, at {level} level" in (
        capsys.readouterr().err
    )


def test_other_text_is_no_point_of_the_runs_curve(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    before = RunFolder.open(tmp_path).metrics("eval")
    own = run.evaluate()["eval_loss"]
    other = run.evaluate(corpus(500, seed=2))["eval_loss"]
    assert own != other
    after = RunFolder.open(tmp_path).metrics("eval")
    assert [row["loss"] for row in after] == [row["loss"] for row in before] + [own]
