"""The model card: filled in from the run, valid for the Hub, and never at its user's cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.record import record
from patchtrain.model_folder import keep_card
from patchtrain.report.card import Prices
from patchtrain.report.card_file import refresh_card, write_card
from patchtrain.report.formats import flops
from patchtrain.runs import RunFolder
from tests.evaluation.tiny import save_tiny_model
from tests.report.fake_runs import add_extras, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = write_run(tmp_path / "small")
    add_extras(made)
    save_tiny_model(made.model)
    return made


def card(run: RunFolder) -> str:
    return (run.model / "README.md").read_text(encoding="utf-8")


def test_it_says_what_a_reader_of_the_hub_asks(run: RunFolder) -> None:
    found = write_card(run, Prices(2.5, 400))
    assert found.written
    text = card(run)
    info = run.info()
    for part in (
        "# small\n",
        "small trained a model of 6.30M parameters",
        "| patches of 4 | 4 | 500 |",
        info["store"]["fingerprint"],
        "41.2M tokens to train on, 412,301 held out",
        f"| {info['result']['bits_per_byte']:.4f} |",
        "| validation | 1.2617 | 3.4100 |",
        "| blimp | 61.2 ± 0.6 | 50.0 | 6,700 |",
        flops(info["flops"]),
        "patch_size: 4",
        info["command"],
        "torch 2.13.0",
        "shao2025patch",
        "2605.06546",
    ):
        assert part in text, part
    hours = info["seconds"] / 3600
    assert f"money: {hours * 2.5:,.2f}, at 2.5 a device-hour" in text
    assert "kWh, at 400 W a device" in text
    assert "/data/stores" not in text.replace(run.recipe_file.read_text(), "")


def test_the_hub_reads_its_metadata(run: RunFolder) -> None:
    write_card(run)
    read = ModelCard.load(run.model / "README.md", ignore_metadata_errors=False)
    assert read.data.library_name == "transformers"
    assert read.data.pipeline_tag == "text-generation"
    assert "patch-level-training" in read.data.tags
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in read.data.eval_results}
    assert results["validation", "bits_per_byte"] == 1.2617
    assert results["blimp", "accuracy"] == 0.612
    assert yaml.safe_load(read.data.to_yaml()) == yaml.safe_load(card(run).split("---")[1])


def test_a_measurement_brings_it_up_to_date_and_prices_stay(run: RunFolder) -> None:
    write_card(run, Prices(per_device_hour=2.0))
    record(run.evaluation_file, "text", "novel.txt", {"bits_per_byte": 1.5, "loss": 4.0})
    assert "novel.txt" not in card(run)
    refresh_card(run)
    text = card(run)
    assert "| novel.txt | 1.5000 | 4.0000 |" in text
    assert "at 2 a device-hour" in text
    front = yaml.safe_load(text.split("---")[1])
    assert "novel.txt" in json.dumps(front["model-index"])
    again = write_card(run)
    assert again.kept is None
    assert card(run) == text


def test_what_its_user_writes_around_it_stays(run: RunFolder) -> None:
    write_card(run)
    before, after = "Mine, above.\n\n<!-- patchtrain: written", "\n\n## Thanks\n\nTo all.\n"
    own = card(run).replace("<!-- patchtrain: written", before) + after
    (run.model / "README.md").write_text(own, encoding="utf-8")
    record(run.evaluation_file, "text", "novel.txt", {"bits_per_byte": 1.5, "loss": 4.0})
    assert write_card(run).written
    text = card(run)
    assert "Mine, above.\n\n" in text
    assert text.endswith(after)
    assert "novel.txt" in text


def test_an_edited_section_is_not_written_again(run: RunFolder) -> None:
    write_card(run)
    edited = card(run).replace("## Limits", "## Limits, as I see them")
    (run.model / "README.md").write_text(edited, encoding="utf-8")
    found = write_card(run)
    assert not found.written
    assert "was edited" in str(found.kept)
    assert card(run) == edited
    assert main(["card", str(run.path)]) == 2


def test_an_edited_front_stays_while_the_rest_goes_on(run: RunFolder) -> None:
    write_card(run)
    edited = card(run).replace("---\n", "---\nlicense: mit # mine\n", 1)
    (run.model / "README.md").write_text(edited, encoding="utf-8")
    for name in ("one.txt", "two.txt"):
        record(run.evaluation_file, "text", name, {"bits_per_byte": 1.5, "loss": 4.0})
        assert "YAML" in str(write_card(run).kept)
        text = card(run)
        assert text.startswith("---\nlicense: mit # mine\n")
        assert f"| {name} |" in text
        assert name not in text.split("---")[1]


def test_a_readme_of_somebody_else_is_left_alone(run: RunFolder, tmp_path: Path) -> None:
    (run.model / "README.md").write_text("# Mine\n", encoding="utf-8")
    assert not write_card(run).written
    assert card(run) == "# Mine\n"
    (run.model / "README.md").unlink()
    (tmp_path / "other.md").write_text("# Other\n", encoding="utf-8")
    (run.model / "README.md").symlink_to(tmp_path / "other.md")
    with pytest.raises(PatchtrainError, match="is a link"):
        write_card(run)
    refresh_card(run)
    assert (tmp_path / "other.md").read_text(encoding="utf-8") == "# Other\n"


def test_a_model_that_is_exported_again_keeps_its_card(run: RunFolder, tmp_path: Path) -> None:
    write_card(run)
    (tmp_path / "new").mkdir()
    keep_card(run.model, tmp_path / "new")
    assert (tmp_path / "new" / "README.md").read_text(encoding="utf-8") == card(run)


def test_what_a_hostile_run_says_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | [x](javascript:y)\n## Heading"
    run = write_run(tmp_path / "run", name=evil, command=f"```\n{evil}")
    record(run.evaluation_file, "text", "x|<b>", {"bits_per_byte": 1.0, "loss": 1.0})
    run.recipe_file.write_text(f"store: x\n```\n{evil}\n", encoding="utf-8")
    save_tiny_model(run.model)
    write_card(run)
    text = card(run)
    outside = text.replace(run.recipe_file.read_text(encoding="utf-8").strip(), "")
    outside = outside.split("---\n", 2)[2].partition("```text")[0]
    assert "<script>" not in outside
    assert "\n## Heading" not in outside
    assert "| x\\|\\<b\\> |" in outside
    assert "````yaml" in text
    assert ModelCard(text).data.model_name or True
    refresh_card(run)
    assert card(run) == text


def test_a_run_without_a_model_or_with_little_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UsageError, match="no model yet"):
        write_card(run)
    save_tiny_model(run.model)
    run.write_info({"format_version": 1, "status": "failed"})
    run.metrics_file.unlink()
    write_card(run)
    assert "did not finish" in card(run)
    assert main(["card", str(run.path), "--price", "-1"]) == 2
