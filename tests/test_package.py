"""What the project says of itself agrees: version, changelog, citation, forms, map of the rooms."""

import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import yaml

import patchtrain

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_version_stands_in_one_place_and_heads_the_changelog() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert "version" not in PYPROJECT["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", changes, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    dated = [
        re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", line) for line in headings[1:]
    ]
    assert all(dated), headings
    versions = [tuple(map(int, found[1].split("."))) for found in dated if found]
    days = [date.fromisoformat(found[2]) for found in dated if found]
    assert versions == sorted(versions, reverse=True)
    assert days == sorted(days, reverse=True)
    assert ".".join(map(str, versions[0])) == patchtrain.__version__
    kinds = set(re.findall(r"^### (.*)$", changes, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_complete() -> None:
    cff = read("CITATION.cff")
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "abstract", "keywords"} <= cff.keys()
    assert cff["version"] == patchtrain.__version__
    assert cff["license"] == PYPROJECT["project"]["license"]
    cited = {reference["url"] for reference in cff["references"]}
    assert cited == set(re.findall(r"https://arxiv\.org/abs/[\d.]+", README))
    for reference in cff["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        assert reference["doi"] == f"10.48550/arXiv.{reference['url'].rpartition('/')[2]}"
        assert all(author["family-names"] in README for author in reference["authors"])


def test_issue_forms_have_what_a_form_needs() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "config", "idea", "result"]
    for form in forms:
        if form.stem == "config":
            continue
        values = read(str(form.relative_to(ROOT)))
        assert {"name", "description", "body"} <= values.keys()
        fields = [field for field in values["body"] if field["type"] != "markdown"]
        names = [field["id"] for field in fields]
        assert len(names) == len(set(names))
        assert all(field["attributes"]["label"] for field in fields)
        assert all(field["type"] in ("textarea", "input", "dropdown") for field in fields)


def test_the_workflow_runs_the_script_that_everybody_can() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["run"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    script = (ROOT / ".ci" / "run").read_text()
    made = [
        word for line in script.splitlines() if line.startswith("make ") for word in line.split()
    ]
    assert {"check", "package", "docs", "evidence", "test"} <= set(made)


def test_every_room_is_on_the_map() -> None:
    (table,) = re.findall(r"## Where things are\n(.*?)\nApache", README, re.DOTALL)
    named = {name.rstrip("/") for name in re.findall(r"`(?:src/patchtrain/)?([\w./]+)`", table)}
    for path in (ROOT / "src" / "patchtrain").iterdir():
        if path.suffix == ".py" or path.is_dir():
            own = path.name.startswith("__") or path.name in named
            assert own, f"{path.name} is not on the README's map"
    for name in (name for name in named if "." in name):
        places = (ROOT / "src" / "patchtrain" / name, ROOT / name)
        assert any(place.exists() for place in places), f"the README's map has {name}"


def test_every_module_opens_with_what_it_is() -> None:
    for file in sorted((ROOT / "src").rglob("*.py")):
        assert re.match(r'[rR]?"""\w|"""``|"""`', file.read_text(encoding="utf-8")), file


def test_no_file_is_too_long_to_read() -> None:  # about 400 lines
    for file in (ROOT / "src").rglob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 420, file
