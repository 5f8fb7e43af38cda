"""How a run stands, from its files: time left against a known pace, and every way to end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from patchtrain.watch.state import State, Watched
from patchtrain.watch.status import STATUSES
from patchtrain.watch.words import facts, headline, line
from tests.report.fake_runs import write_run
from tests.watch.pretend import STARTED, Pretended, here

TWO = Pretended()
# A patch-level step that takes three times as long as a token-level one, as it has more positions.
UNLIKE = Pretended(((8, 60, 192, 0.9), (2, 60, 128, 0.6), (1, 180, 64, 0.3)))


def look(run: Any, after: float = 0.0) -> State:
    """The state ``after`` seconds after the last line."""
    return Watched(run.path).look(run.metrics_file.stat().st_mtime + after)


# ---- time left


@pytest.mark.parametrize("steps", [20, 59, 60, 61, 75, 119, 120, 121, 130, 200, 299])
def test_time_left_counts_each_stage_at_its_own_pace(tmp_path: Path, steps: int) -> None:
    state = look(UNLIKE.write(tmp_path / "run", steps))
    assert state.status == "running"
    assert state.left == pytest.approx(UNLIKE.left(steps))
    assert state.ends_at == pytest.approx(STARTED + UNLIKE.left(0))


def test_time_left_of_a_stage_that_begun_is_measured_and_not_derived(tmp_path: Path) -> None:
    """The token level takes twice what its operations say; known as soon as it has begun."""
    odd = Pretended(((4, 100, 64, 0.5), (1, 200, 64, 1.0)))
    before, after = (look(odd.write(tmp_path / str(steps), steps)) for steps in (90, 120))
    assert before.left == pytest.approx(10 * 0.5 + 200 * 0.5)
    assert after.left == pytest.approx(180 * 1.0) == odd.left(120)


def test_the_operations_of_a_step_come_from_the_plan_and_the_model(tmp_path: Path) -> None:
    """Of two stages with as many positions, the one with longer contexts attends further."""
    attention = [{"layers": 1, "score_width": 100, "value_width": 100, "window": None}]
    model = {
        "parameters": 10, "active_parameters": 10, "body_parameters": 0, "matrix_parameters": 0,
        "head_parameters": 0, "hidden_size": 0, "vocab_size": 0, "attention": attention,
    }  # fmt: skip
    run = TWO.write(tmp_path / "run", 50, model=model)
    info = run.info()
    for stage, context in zip(info["plan"]["stages"], (63, 31), strict=True):
        sequences = {"context_length": context, "sequences_per_step": 1, "first_block": 0}
        stage |= {**sequences, "index": 0, "blocks": 1, "slot_weights": [1.0]}
    run.write_info(info)
    state = look(run)
    one, other = (stage.flops / stage.steps for stage in state.stages if stage.flops)
    assert one / other == pytest.approx(63 / 31 * 64 / 32, rel=1e-2)
    assert state.left == pytest.approx(50 * 0.5 + 200 * 0.5 * other / one)


@pytest.mark.parametrize("steps", [25, 80, 100, 130, 299])
def test_time_left_holds_the_evaluations_to_come(tmp_path: Path, steps: int) -> None:
    pauses = Pretended(eval_every=20, eval_seconds=7.0)
    state = look(pauses.write(tmp_path / "run", steps))
    assert state.pace is not None
    assert state.pace.evaluation_seconds == pytest.approx(7.0)
    assert state.left == pytest.approx(pauses.left(steps), abs=7.0)  # evenly spread, not counted


def test_time_left_shrinks_between_two_lines_and_no_further(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 50)
    left = [look(run, after).left for after in (0, 2, 5, 20, 50)]
    assert left == pytest.approx([125, 123, 120, 120, 120])


def test_a_resumed_run_goes_at_its_new_pace(tmp_path: Path) -> None:
    slow = Pretended(((4, 100, 64, 5.0), (1, 200, 64, 5.0)))
    run = slow.write(tmp_path / "run", 57, resumed=[{"step": 57, "at": "2026-01-01T00:00:00"}])
    state = look(run)  # nothing new yet: the old pace is all there is
    assert state.status == "starting"
    assert state.resumed == (57,)
    assert state.left == pytest.approx(250 * 5.0 - 7 * 5.0)
    watched = Watched(run.path)
    watched.look()
    rows = TWO.rows(80, first=57, before=57 * 5.0)
    with run.metrics_file.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    state = watched.look(run.metrics_file.stat().st_mtime)
    assert state.status == "running"
    assert state.step == 80
    assert state.left == pytest.approx(220 * 0.5)


def test_a_replaced_file_takes_lines_back(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 150)
    watched = Watched(run.path)
    assert watched.look().step == 150
    first = watched.history.generation
    TWO.write(tmp_path / "run", 80, resumed=[{"step": 80}])
    state = watched.look()
    assert state.step == 80
    assert state.stage is not None
    assert state.stage.index == 0
    assert watched.history.generation != first
    assert watched.history.switches == {}


def test_the_next_switch_and_those_that_were(tmp_path: Path) -> None:
    states = [look(UNLIKE.write(tmp_path / str(steps), steps)) for steps in (30, 100, 200)]
    assert [state.stage and state.stage.index for state in states] == [0, 1, 2]
    assert [state.to_switch for state in states] == [
        pytest.approx(30 * 0.9), pytest.approx(20 * 0.6), None
    ]  # fmt: skip
    switch = [dict(facts(state))["switch"] for state in states]
    assert switch[0] == "to patches of 2 at step 60, in 27.0 s"
    assert switch[1] == "to tokens at step 120, in 12.0 s"
    assert switch[2] == "to tokens at step 120: done"
    assert [round(state.share, 3) for state in states] == [
        pytest.approx(30 * 192 / (60 * 192 + 60 * 128 + 180 * 64), abs=1e-3),
        pytest.approx((60 * 192 + 40 * 128) / 30720, abs=1e-3),
        pytest.approx((60 * 192 + 60 * 128 + 80 * 64) / 30720, abs=1e-3),
    ]


def test_speed_is_of_the_stage_it_is_in(tmp_path: Path) -> None:
    patches, tokens = (look(TWO.write(tmp_path / str(n), n)) for n in (60, 160))
    assert patches.tokens_per_s == pytest.approx(64 * 4 / 0.5)
    assert tokens.tokens_per_s == pytest.approx(64 / 0.5)
    assert patches.data_share == pytest.approx(0.1)


# ---- what became of it


def test_a_run_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "run")
    state = watched.look()
    assert state.status == "waiting"
    assert "has not started yet" in headline(state)
    (tmp_path / "run").mkdir()
    assert watched.look().status == "waiting"
    with watched.run.locked():  # as `train` does before anything slow
        assert watched.look().status == "starting"
    TWO.write(tmp_path / "run", 0, process=here(os.getpid()), started=_now())
    assert watched.look().status == "starting"
    TWO.write(tmp_path / "run", 1, process=here(os.getpid()), started=_now())
    assert watched.look().status == "running"


def test_ends(tmp_path: Path) -> None:
    for status, word in (
        ("interrupted", "stopped"),
        ("failed", "failed"),
        ("finished", "finished"),
    ):
        run = TWO.write(tmp_path / status, 300, status, finished="2026-01-01T00:00:00+00:00")
        state = look(run, 1e6)
        assert state.status == word
        assert state.over
        assert state.left is None
        assert line(state) == headline(state)
    assert look(TWO.write(tmp_path / "last", 300)).status == "finishing"


def test_a_process_that_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    run = TWO.write(tmp_path / "run", 50, process=here(child.pid), started=_now())
    state = Watched(run.path).look()
    assert state.status == "gone"
    assert state.left is None
    assert "--resume goes on" in headline(state)
    (run.path / "failure.json").write_text('{"process": 3, "host": "node-2", "error": "no space"}')
    assert "process 3 on node-2: no space" in Watched(run.path).look().problems


def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    """This process is younger than the run that it would have written."""
    run = TWO.write(tmp_path / "run", 50, process=here(os.getpid()))
    assert Watched(run.path).look().status == "gone"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP here")
def test_a_suspended_process_stands_still(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"],
                             stdin=subprocess.PIPE)  # fmt: skip
    try:
        run = TWO.write(tmp_path / "run", 50, process=here(child.pid), started=_now())
        assert Watched(run.path).look(time.time()).status == "running"
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        state = Watched(run.path).look(time.time())
        assert state.status == "stalled"
        assert "suspended" in headline(state)
    finally:
        child.kill()
        child.communicate()


def test_silence_is_judged_by_the_usual_time_between_lines(tmp_path: Path) -> None:
    quick = TWO.write(tmp_path / "quick", 50)  # a line every 5 seconds
    assert [look(quick, after).status for after in (5, 59, 61)] == ["running", "running", "stalled"]
    slow = Pretended(((1, 100, 64, 60.0),)).write(tmp_path / "slow", 50)  # one every 10 minutes
    assert [look(slow, 60 * m).status for m in (10, 49, 51)] == ["running", "running", "stalled"]
    assert "has written nothing for 51 min" in headline(look(slow, 60 * 51))
    first = TWO.write(tmp_path / "first", 0)  # compiling may take minutes
    assert [Watched(first.path).look(STARTED + s).status for s in (5, 599, 601)] == [
        "starting", "starting", "stalled"
    ]  # fmt: skip


def test_being_taken_up_again_is_seen_before_the_first_step(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for status in ("interrupted", "failed", "running"):
        run = TWO.write(tmp_path / status, 50, status, process=here(child.pid))
        with run.locked():
            assert Watched(run.path).look().status == "starting"


# ---- files that are not as they should be


def test_checkpoints(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 50)
    assert look(run).checkpoint is None
    for name in ("checkpoint-9", "checkpoint-40", "checkpoint-50.aside", ".checkpoint-50.partial"):
        (run.path / name).mkdir()
    (run.path / "checkpoint-40" / "weights").write_bytes(b"x" * 1000)
    found = look(run).checkpoint
    assert found is not None
    assert found[0] == 40


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TWO.write(tmp_path / "run", 50)
    (run.path / "checkpoint-40").mkdir()
    (run.path / "checkpoint-40" / "weights").write_bytes(b"x" * 3_000_000)
    used = shutil.disk_usage(tmp_path)
    assert look(run).problems == ()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: used._replace(free=2_000_000))
    (problem,) = look(run).problems
    assert problem == (
        "the disk is almost full: 2.00M bytes are free, the next checkpoint takes 3.00M"
    )


def test_broken_files_are_problems_and_no_errors(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 50)
    with run.metrics_file.open("a") as file:
        file.write('{"event": "tr\n{"event": "train", "step": "x"}\n{"event": "train", "st')
    state = look(run)
    assert state.step == 50
    assert state.problems == ("2 lines of metrics.jsonl cannot be read",)
    run.info_file.write_text("{")
    (problem, _) = look(run).problems
    assert "run.json cannot be read" in problem
    run.metrics_file.unlink()
    run.metrics_file.mkdir()
    assert any(
        "metrics.jsonl cannot be read" in problem for problem in Watched(run.path).look().problems
    )


def test_an_unreadable_record_does_not_lose_what_was_known(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 50)
    watched = Watched(run.path)
    watched.look()
    run.info_file.write_text("{")
    assert watched.look(STARTED + 25).total_steps == 300


@pytest.mark.parametrize("seed", range(8))
def test_nonsense_in_the_files_never_raises(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    junk = [None, "x", -1, 0, True, [], {}, float("nan"), 1e308, 10**400, -(10**400), "\ud800"]
    run = write_run(tmp_path / "run", ((4, 40), (1, 40)), finished=False)
    info, text = run.info(), run.metrics_file.read_text().splitlines()

    def spoil(value: Any) -> Any:
        if rng.random() < 0.04:
            return rng.choice(junk)
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        return [spoil(item) for item in value] if isinstance(value, list) else value

    for _ in range(12):
        spoilt = spoil(info)
        run.info_file.write_text(json.dumps(spoilt))
        run.metrics_file.write_text("".join(json.dumps(spoil(json.loads(x))) + "\n" for x in text))
        state = Watched(run.path).look()
        assert state.status in STATUSES
        json.dumps(state.to_dict(), allow_nan=False)
        assert line(state)
        assert all(isinstance(part, str) for fact in facts(state) for part in fact)


def test_an_instruction_tuning_has_one_stage_and_its_own_counters(tmp_path: Path) -> None:
    run = TWO.write(tmp_path / "run", 0)
    stage = {"name": "answers", "patch_size": 1, "first_step": 0, "steps": 40, "tokens": 4000,
             "positions": 4000, "tokens_per_step": 100}  # fmt: skip
    run.write_info({**run.info(), "plan": {"stages": [stage], "total_steps": 40}, "tuning": {}})
    row = {"stage": 0, "patch_size": 1, "learning_rate": 1e-5, "grad_norm": 1.0}
    rows = [{"event": "eval", "step": 0, "tokens": 0, "positions": 0, "flops": 0, "seconds": 0.0,
             "loss": 3.0, **row}]  # fmt: skip
    rows += [
        {"event": "train", "step": n, "tokens": 100 * n, "positions": 100 * n, "flops": 1e6 * n,
         "seconds": 2.0 * n, "loss": 3 - n / 20, **row}
        for n in range(1, 21)
    ]  # fmt: skip
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(run.metrics_file, (STARTED + 40, STARTED + 40))
    state = look(run)
    assert state.status == "running"
    assert state.left == pytest.approx(40.0)
    assert state.tokens_per_s == pytest.approx(50.0)
    assert state.total_flops == pytest.approx(4e7)
    shown = dict(facts(state))
    assert shown["stage"] == "1 of 1: answers, step 20 of 40"
    assert "switch" not in shown


def test_the_state_for_machines(tmp_path: Path) -> None:
    found = look(TWO.write(tmp_path / "run", 150)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["status"], found["step"], found["total_steps"]) == ("running", 150, 300)
    assert found["stage"]["number"] == 2
    assert [stage["step"] for stage in found["stages"]] == [100, 50]
    assert found["left_seconds"] == pytest.approx(75.0)
    assert datetime.fromisoformat(found["ends_at"]).timestamp() == pytest.approx(STARTED + 150)
    assert found["process"]["alive"] is None


def _now() -> str:
    return datetime.now(UTC).isoformat()
