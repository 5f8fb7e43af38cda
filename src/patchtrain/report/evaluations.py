"""What was measured on the models of the runs, a section of the page for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from patchtrain.report.inside_section import inside_section
from patchtrain.report.instructions_section import instructions_section
from patchtrain.report.summary import RunSummary
from patchtrain.report.tasks_section import tasks_section
from patchtrain.report.text_section import text_section

Section = Callable[[Sequence[RunSummary]], str]


# In the order of the page; each returns HTML, and nothing where nothing was measured.
SECTIONS: tuple[Section, ...] = (
    text_section,
    tasks_section,
    instructions_section,
    inside_section,
)


def evaluations(runs: Sequence[RunSummary]) -> str:
    """All sections that have something to say."""
    return "".join(section(runs) for section in SECTIONS)
