"""A run from a stranger: an escaped page or one clear error, whatever its files hold."""

from __future__ import annotations

import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError
from patchtrain.evaluation.record import record
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from tests.fuzzing.chance import change_entry, odd_value, places
from tests.report.browser import find_browser
from tests.report.fake_runs import add_extras, write_run
from tests.report.test_browser import look

EVIL = (
    "</p></td></script></style></textarea>--><script>throw Error('ran')</script>"
    "<img src=x onerror=\"throw Error('ran')\"><a href='javascript:throw 1'>x</a>"
    "<iframe srcdoc='x'></iframe>\"'` {{7*7}} %{customdata[0]} \u2028\ud800\0"
)


def made_evil(value: Any) -> Any:
    """Every text in nested values, and a key more in each mapping, is hostile."""
    if isinstance(value, dict):
        return {key: made_evil(inner) for key, inner in value.items()} | {EVIL: EVIL}
    if isinstance(value, list):
        return [made_evil(inner) for inner in value]
    return EVIL if isinstance(value, str) else value


def hostile_run(folder: Path) -> RunFolder:
    run = write_run(folder)
    add_extras(run)
    evaluation = run.evaluation()["text"]["validation"]
    tasks = run.evaluation()["tasks"]["blimp"]
    info = made_evil(run.info()) | {"status": "finished"}
    run.info_file.write_text(json.dumps(info))
    rows = [{**made_evil(row), "event": row["event"]} for row in run.metrics()]
    rows[3]["tokens"] = rows[30]["tokens"] = EVIL
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.samples_file.write_text(json.dumps(made_evil(run.samples())))
    for name in ("validation", EVIL):
        record(run.evaluation_file, "text", name, made_evil(evaluation))
        record(run.evaluation_file, "tasks", name, made_evil(tasks))
    run.recipe_file.write_bytes(EVIL.encode("utf-8", "surrogatepass"))
    return run


class Elements(HTMLParser):
    """Which elements and attributes a page has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}


def test_hostile_texts_add_no_element_and_no_attribute(tmp_path: Path) -> None:
    clean = write_run(tmp_path / "clean")
    add_extras(clean)
    record(clean.evaluation_file, "text", "book", clean.evaluation()["text"]["validation"])
    harmless = Elements(write_page([clean], tmp_path / "clean.html"))
    hostile = Elements(
        write_page([hostile_run(tmp_path / "hostile")], tmp_path / "page.html", EVIL)
    )
    assert hostile.tags["script"] == harmless.tags["script"]
    assert hostile.tags.keys() == harmless.tags.keys()
    assert hostile.attributes == harmless.attributes
    assert not {"img", "a", "iframe"} & hostile.tags.keys()
    several = [clean, hostile_run(tmp_path / "other")]
    both = Elements(write_page(several, tmp_path / "both.html", EVIL))
    assert both.tags.keys() <= harmless.tags.keys() | {"h3", "span"}
    assert both.tags["script"] == harmless.tags["script"] + 1  # the evaluation named EVIL


def test_hostile_texts_do_not_run_in_a_browser(tmp_path: Path) -> None:
    find_browser()
    page = write_page([hostile_run(tmp_path / "run")], tmp_path / "page.html", title=EVIL)
    seen = look(page, tmp_path, 800)
    assert seen["errors"] == []
    assert seen["refused"] == []
    assert seen["loaded"] == []
    assert len(seen["plots"]) == 4
    assert all(len(plot["lines"]) > 1 for plot in seen["plots"])


def test_huge_numbers_are_drawn_or_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((1, 200),))
    row = run.metrics("train")[-1]
    odd = [1e308, -1e308, 10**400, 2**63, 1e-320, "NaN", True, None, [], {}]
    rows = [{**row, "step": row["step"] + n, "loss": value} for n, value in enumerate(odd, 1)]
    with run.metrics_file.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.write('{"event": "eval", "step": 900, "loss": Infinity, "flops": NaN}\n')
    info = run.info() | {"flops": 10**400, "seconds": -(10**30), "learning_rate": 1e308}
    info["model"] = {"parameters": 10**400, "body_parameters": 1e308}
    run.info_file.write_text(json.dumps(info))
    write_page([run], tmp_path / "page.html")
    write_page([run, write_run(tmp_path / "base", ((1, 200),))], tmp_path / "page.html")


@pytest.mark.parametrize("seed", range(40))
def test_values_of_any_kind_end_in_a_page_or_one_clear_error(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The script of plotly, four megabytes, is the same in every page.
    monkeypatch.setattr("patchtrain.report.figures.get_plotlyjs", lambda: "")
    rng, run = Random(seed), write_run(tmp_path / "run", ((4, 20), (1, 30)))
    add_extras(run)
    files = [run.info_file, run.samples_file, run.evaluation_file]
    for _ in range(3):
        file = rng.choice([*files, run.metrics_file])
        lines = [file.read_text()] if file != run.metrics_file else file.read_text().splitlines()
        number = rng.randrange(len(lines))
        values = json.loads(lines[number])
        if found := places(values):
            change_entry(rng, values, rng.choice(found), odd_value(rng))
        lines[number] = json.dumps(values)
        file.write_text("\n".join(lines))
    other = write_run(tmp_path / "other", ((1, 30),))
    for runs in ([run], [other, run], [run, other]):
        try:
            page = write_page(runs, tmp_path / "page.html")
        except PatchtrainError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert "</html>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"[]"),
        ("run.json", b'{"plan": {"stages": 3}}'),
        ("run.json", b'{"plan": {"stages": [{"patch_size": 1e999}]}}'),
        ("metrics.jsonl", b'7\n{"event": "train"}\n'),
        (
            "metrics.jsonl",
            b'{"event": "train", "step": 1, "stage": 0, "flops": 1' + b"0" * 400 + b"}",
        ),
        ("samples.json", b'[{"prompt": 1, "completion": 2}]'),
        ("samples.json", b"\xff"),
        ("evaluation.json", b"{"),
    ],
)
def test_a_file_of_another_form_is_one_line(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", ((1, 20),))
    add_extras(run)
    (run.path / name).write_bytes(content)
    assert main(["report", str(run.path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("patchtrain: error: ")
    assert error.count("\n") == 1
    assert "--debug" not in error
    assert not run.report_file.exists()
