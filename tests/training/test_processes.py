"""Several processes are one run: same losses, data and model, saved and resumed on any number."""

import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from patchtrain import PatchConfig, UsageError
from patchtrain.data.prepare import prepare
from patchtrain.runs import RunFolder
from tests.cli.corpus import write_corpus
from tests.training.several import Ended, run

TIED = "model.config.tie_word_embeddings=true"
FSDP = "training.fsdp=true"
BEYOND = (
    "plan.average_at_switch=0.7",  # of three steps the last two
    "plan.pool_order=rotate",
    "plan.hybrid_share=0.5",
    "plan.hold=compute",
    "plan.freeze_head_steps=1",
    "plan.head_scale_at_switch=1.5",
)
STEPS, SWITCH = 6, 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("processes"))


def make_recipe(folder: Path) -> Path:
    """Patches of 2 for three steps, tokens for three; optimizer reset, a checkpoint each step."""
    write_corpus(folder / "corpus.txt", sentences=2000)
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=301)
    values = {
        "store": str(folder / "store"),
        "out": str(folder / "run"),
        "model": {
            "config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
                       "num_hidden_layers": 2, "num_attention_heads": 2,
                       "num_key_value_heads": 1, "head_dim": 8},
        },
        "plan": {
            "preset": "paper", "stages": [[2, 0.5], [1, 0.5]], "context_length": 8,
            "tokens_per_step": 128, "steps": STEPS, "warmup_steps": 1,
        },
        "training": {
            "learning_rate": 1e-2, "use_cpu": True, "per_device_train_batch_size": 2,
            "logging_steps": 1, "eval_steps": 3, "eval_tokens": 210, "save_steps": 1,
            "save_total_limit": 9,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


class Runs:
    """Runs of the recipe by name, each made once."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        self.made: dict[str, tuple[RunFolder, Ended]] = {}

    def whole(self, count: int, *overrides: str) -> tuple[RunFolder, Ended]:
        """The run from start to end on ``count`` processes."""
        name = re.sub(r"[^\w=-]+", "-", "-".join([str(count), *overrides]))
        if name not in self.made:
            self.made[name] = self.go(name, count, *overrides)
        return self.made[name]

    def resumed(self, source: RunFolder, step: int, count: int, *overrides: str) -> Any:
        """A copy of a run, taken up after ``step``."""
        folder = self.copy(source, step)
        return self.go(folder.name, count, *overrides, "--resume", "--allow-change=processes")

    def copy(self, source: RunFolder, step: int) -> Path:
        """A run as if it had died after ``step``."""
        folder = self.recipe.parent / f"copy-{len(list(self.recipe.parent.iterdir()))}"
        shutil.copytree(source.path, folder)
        shutil.rmtree(folder / "model")
        for later in range(step + 1, STEPS + 1):
            shutil.rmtree(folder / f"checkpoint-{later}")
        if step <= SWITCH:
            shutil.rmtree(folder / "stage-1")
        return folder

    def go(self, name: str, count: int, *words: str, **kwargs: Any) -> tuple[RunFolder, Ended]:
        out = self.recipe.parent / name
        argv = ["train", str(self.recipe), "--quiet", f"out={out}", *words]
        ended = run(count, argv, self.recipe.parent / "said" / name, **kwargs)
        return RunFolder(out), ended


@pytest.fixture(scope="module")
def runs(recipe: Path) -> Runs:
    return Runs(recipe)


def rows(folder: RunFolder, event: str, *names: str) -> list[float]:
    return [row[name] for row in folder.metrics(event) for name in names]


def same_run(found: tuple[RunFolder, Ended], whole: tuple[RunFolder, Ended], step: int = 0) -> None:
    """Data, losses, gradient norms, evaluations and the model are those of another run."""
    (folder, ended), (expected, other) = found, whole
    assert ended.codes == [0] * len(ended.codes), ended.said
    assert ended.data() == {n: ids for n, ids in other.data().items() if n >= step}
    for event, names in (
        ("train", ("step", "loss", "grad_norm", "learning_rate", "tokens")),
        ("eval", ("step", "loss", "bits_per_byte")),
        ("switch", ("step",)),
    ):
        got, want = rows(folder, event, *names), rows(expected, event, *names)
        assert got == pytest.approx(want, rel=2e-5), event
    got, want = ([row.get("patch_loss", -1) for row in of.metrics("eval")]
                 for of in (folder, expected))  # fmt: skip
    assert got == pytest.approx(want, rel=2e-5)
    assert folder.info()["status"] == "finished"
    assert folder.info()["result"]["loss"] == pytest.approx(expected.info()["result"]["loss"])
    assert folder.info()["model"] == expected.info()["model"]
    same_model(folder.model, expected.model)
    kept, made = expected.stage_models(), folder.stage_models()
    assert kept.keys() == made.keys() == {1}
    same_model(made[1], kept[1])


def same_model(folder: Path, expected: Path) -> None:
    """Plain models with the same names, and the same numbers but for rounding."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in expected.iterdir()
    )
    for name in ("config.json", "generation_config.json"):
        assert (folder / name).read_text() == (expected / name).read_text()
    got, want = (load_file(of / "model.safetensors") for of in (folder, expected))
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        # AdamW makes of the rounding of a gradient near zero some part of a step.
        torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=1e-4, msg=name)
    AutoModelForCausalLM.from_pretrained(folder)


def files(checkpoint: Path, part: str) -> dict[str, dict[str, list[int]]]:
    """Shapes of the tensors in each file of a part of a checkpoint."""
    found = {}
    for file in sorted((checkpoint / part).glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found[file.name] = {
                name: opened.get_slice(name).get_shape()
                for name in opened.keys()  # noqa: SIM118
            }
    return found


@pytest.mark.parametrize("tied", [(), (TIED,)], ids=["untied", "tied"])
@pytest.mark.parametrize("sharded", [(), (FSDP,)], ids=["ddp", "fsdp"])
def test_two_processes_are_one_run(
    runs: Runs, sharded: tuple[str, ...], tied: tuple[str, ...]
) -> None:
    same_run(runs.whole(2, *sharded, *tied), runs.whole(1, *tied))


def test_sharded_with_activation_checkpointing_and_separate_documents(runs: Runs) -> None:
    more = "training.fsdp_config={activation_checkpointing: true, reshard_after_forward: false}"
    separate = "plan.documents=separate"
    found = runs.whole(2, FSDP, more, separate)
    same_run(found, runs.whole(1, separate))
    weights = files(found[0].path / "checkpoint-2", "weights")
    assert not any("wrapped" in name for names in weights.values() for name in names)
    same_run(runs.resumed(found[0], 2, 1, separate), runs.whole(1, separate), 2)


def test_sharded_mixed_precision_sums_in_fp32(runs: Runs) -> None:
    folder, ended = runs.whole(2, FSDP, "training.bf16=true")
    assert ended.codes == [0, 0]
    losses = rows(folder, "train", "loss")
    assert losses == pytest.approx(rows(runs.whole(1)[0], "train", "loss"), rel=1e-3)
    assert all(float(torch.tensor(loss).bfloat16()) != loss for loss in losses)
    model = load_file(folder.model / "model.safetensors")
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}


def test_with_settings_beyond_the_papers_too(runs: Runs) -> None:
    whole = runs.whole(1, *BEYOND)
    for sharded in ((), (FSDP,)):
        same_run(runs.whole(2, *sharded, *BEYOND), whole)
    source = runs.whole(2, FSDP, *BEYOND)[0]
    parts = [files(source.path / "checkpoint-2", part) for part in ("average", "weights")]
    assert len(parts[0]) == 2
    assert [*parts[0].values()] == [*parts[1].values()]
    same_run(runs.resumed(source, 2, 4, *BEYOND), whole, 2)


def launched(*words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """What ``accelerate launch`` asks torchrun for, and the environment it sets."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    found: list[Any] = []

    def start(args: Any) -> None:
        found.append((args, dict(os.environ)))

    monkeypatch.setattr("torch.distributed.run.run", start)
    launch_command(launch_command_parser().parse_args(list(words)))
    ((args, environment),) = found
    ours = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    return args, ours


def test_accelerate_launch_shards_too(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = "--num_processes 2 --use_fsdp --fsdp_version 2 -m patchtrain train recipe.yaml"
    args, environment = launched(*line.split(), monkeypatch=monkeypatch)
    assert (int(args.nproc_per_node), args.training_script_args) == (2, ["train", "recipe.yaml"])
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    pretrained = ("model.config=null", f"model.pretrained={runs.whole(1)[0].model}")
    found = runs.go("accelerate", 2, *pretrained, environment=environment)
    same_run(found, runs.whole(1, *pretrained))
    first, second = files(found[0].path / "checkpoint-2", "weights").values()
    assert first.keys() == second.keys()
    _, ended = runs.go("old", 2, environment={**environment, "FSDP_VERSION": "1"})
    assert len(ended.errors) == 1, ended.said
    assert "fsdp_version 1 is not supported; use 2" in ended.errors[0]


@pytest.mark.parametrize(("config", "words"), [
    ("{reshard_forward: true}", "no key 'reshard_forward'; did you mean 'reshard_after_forward'?"),
    ("{version: 1}", "fsdp_version 1 is not supported; use 2"),
    ("{fsdp_cpu_ram_efficient_loading: true}", "needs its weights"),
])  # fmt: skip
def test_what_fsdp_cannot_have_is_refused(tmp_path: Path, config: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        PatchConfig(str(tmp_path), fsdp=True, fsdp_config=yaml.safe_load(config))


@pytest.mark.parametrize("sharded", [(), (FSDP,)], ids=["ddp", "fsdp"])
def test_every_process_writes_its_own_part_of_a_checkpoint(
    runs: Runs, sharded: tuple[str, ...]
) -> None:
    folder, _ = runs.whole(2, *sharded)
    whole, _ = runs.whole(1)
    checkpoint, alone = (of.path / "checkpoint-2" for of in (folder, whole))
    info = json.loads((checkpoint / "checkpoint.json").read_text())
    assert info["processes"] == 2
    assert {"random/0.safetensors", "random/1.safetensors"} <= info["files"].keys()
    for part in ("weights", "optimizer"):
        first, second = files(checkpoint, part).values()
        (one,) = files(alone, part).values()
        assert first.keys() | second.keys() == one.keys()
        for name, shape in one.items():
            both = [of[name] for of in (first, second) if name in of]
            if sharded and shape:  # each half of the rows
                assert both == [[-(-shape[0] // 2), *shape[1:]], [shape[0] // 2, *shape[1:]]], name
            else:  # whole, and once
                assert both == [shape], name
        sizes = [file.stat().st_size for file in (checkpoint / part).iterdir()]
        assert max(sizes) < 0.75 * sum(sizes)


@pytest.mark.parametrize(
    ("saved_on", "saved_with", "step", "resumed_on", "resumed_with"),
    [
        (2, (), 2, 1, ()),
        (2, (), SWITCH, 4, ()),
        (2, (FSDP,), SWITCH, 1, (FSDP,)),  # on one process there is nothing to shard
        (2, (FSDP,), 2, 4, (FSDP,)),
        (2, (FSDP, TIED), 5, 4, (TIED,)),
        (1, (), 2, 2, (FSDP,)),
        (1, (TIED,), SWITCH, 2, (FSDP, TIED)),
        (1, (), 4, 2, ()),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(
    runs: Runs, saved_on: int, saved_with: Any, step: int, resumed_on: int, resumed_with: Any
) -> None:
    source, _ = runs.whole(saved_on, *saved_with)
    found = runs.resumed(source, step, resumed_on, *resumed_with)
    assert sum(f"going on after step {step} of {STEPS}" in text for text in found[1].said) == 1
    same_run(found, runs.whole(1, *(TIED for one in saved_with if one == TIED)), step)


def damage(checkpoint: Path, number: int) -> str:
    """Change a byte in the file that process ``number`` of two compares; its name."""
    name = sorted(json.loads((checkpoint / "checkpoint.json").read_text())["files"])[number]
    data = bytearray((checkpoint / name).read_bytes())
    data[-1] ^= 1
    (checkpoint / name).write_bytes(data)
    return name


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_finds_damaged_is_left_out_by_all(runs: Runs, rank: int) -> None:
    folder = runs.copy(runs.whole(2)[0], 4)
    name = damage(folder / "checkpoint-4", rank)
    found = runs.go(folder.name, 2, "--resume")
    told = [line for text in found[1].said for line in text.splitlines() if "left out" in line]
    assert len(told) == 1, found[1].said
    assert f"checkpoint-4 is left out: {folder / 'checkpoint-4' / name} is damaged" in told[0]
    same_run(found, runs.whole(2), 3)


def test_where_nothing_is_whole_all_end_with_one_line(runs: Runs) -> None:
    folder = runs.copy(runs.whole(2)[0], 2)
    damage(folder / "checkpoint-2", 1)
    damage(folder / "checkpoint-1", 0)
    _, ended = runs.go(folder.name, 2, "--resume")
    assert ended.codes == [1, 1]
    assert len(ended.errors) == 1, ended.said
    assert f"no checkpoint in {folder} is whole" in ended.errors[0]
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_another_number_of_processes_must_be_said(runs: Runs) -> None:
    folder = runs.copy(runs.whole(1)[0], 2)
    _, ended = runs.go(folder.name, 2, "--resume")
    assert ended.codes == [2, 2]
    assert len(ended.errors) == 1, ended.said
    assert "processes is 2 and was 1; allow it with --allow-change processes" in ended.errors[0]
    _, ended = runs.go(folder.name, 2, "--resume", "plan.stepz=3")
    assert ended.codes == [2, 2]
    assert len(ended.errors) == 1, ended.said
    assert not (folder / "failure.json").exists()


@pytest.mark.parametrize(
    ("sharded", "rank", "what"),
    [
        ((), 0, "killed"),
        ((), 1, "killed"),
        ((FSDP,), 0, "killed"),
        ((FSDP,), 1, "killed"),
        ((), 0, "killed writing"),
        ((FSDP,), 1, "killed writing"),
    ],
)
def test_when_a_process_is_killed_the_other_says_so_and_the_run_goes_on(
    runs: Runs, sharded: tuple[str, ...], rank: int, what: str
) -> None:
    name = f"{what}-{rank}-{len(sharded)}"
    folder, ended = runs.go(name, 2, *sharded, event=(what, rank, 4))
    assert (ended.codes[rank], ended.codes[1 - rank]) == (-9, 1)
    assert len(ended.errors) == 1, ended.said
    assert "another process of this run is gone" in ended.errors[0]
    assert ended.errors[0].endswith("go on with --resume")
    assert json.loads((folder.path / "failure.json").read_text())["process"] == 1 - rank
    if rank == 1:
        same_run(runs.go(name, 2, *sharded, "--resume"), runs.whole(1), 4)
        assert not list(folder.path.glob(".*partial*"))
        assert not (folder.path / "failure.json").exists()


@pytest.mark.parametrize(
    ("what", "step", "words"),
    [
        ("fails", 4, "RuntimeError: this step fails"),
        ("full disk", 4, "the disk is full"),
        ("damaged store", -1, "train.bin is damaged"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_says_why_for_all(
    runs: Runs, what: str, step: int, words: str, rank: int
) -> None:
    folder, ended = runs.go(f"{what}-{rank}", 2, FSDP, event=(what, rank, step))
    assert ended.codes == [1, 1]
    assert len(ended.errors) == 1, ended.said
    assert words in ended.errors[0]
    assert (step < 0) is not folder.path.exists()
    if step > 0:
        assert not list(folder.path.glob(".checkpoint*"))
        assert json.loads((folder.path / "failure.json").read_text())["process"] == rank


def test_a_node_that_does_not_see_the_run_folder_is_named(runs: Runs) -> None:
    folder, ended = runs.go("disks", 2, event=("own disk", 1, -1), nodes=2)
    assert ended.codes == [1, 1]
    assert len(ended.errors) == 1, ended.said
    host = platform.node()
    assert f"{folder.path} is not on a file system that all nodes share" in ended.errors[0]
    assert (
        f"what {host} (process 0) writes there is not seen by {host} (process 1)" in ended.errors[0]
    )
    assert {path.name for path in folder.path.iterdir()} <= {".lock"}
    folder, ended = runs.go("disks", 2, "plan.steps=2", nodes=2)  # nothing is in the way
    assert ended.codes == [0, 0], ended.said
    assert not list(folder.path.glob(".seen*"))


@pytest.mark.parametrize("rank", [1, -1])
def test_a_signal_to_one_or_all_saves_once_and_ends_all(runs: Runs, rank: int) -> None:
    name = f"terminated{rank}"
    rare = "training.save_steps=99"
    folder, ended = runs.go(name, 2, FSDP, rare, event=("terminated", rank, 3))
    assert ended.codes == [143, 143]
    assert len(ended.errors) == 1, ended.said
    assert "stopped by SIGTERM after step 4 of 6" in ended.errors[0]
    assert [path.name for path in folder.path.glob("*checkpoint*")] == ["checkpoint-4"]
    if rank == 1:
        more = runs.go(name, 2, FSDP, rare, "--resume")
        same_run(more, runs.whole(1), 4)
