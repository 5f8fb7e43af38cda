"""What was measured on the models of the runs, a section of the page for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from patchtrain.report import tables
from patchtrain.report.inside_section import inside_section
from patchtrain.report.summary import RunSummary
from patchtrain.report.tasks_section import tasks_section

Section = Callable[[Sequence[RunSummary]], str]


def text_section(runs: Sequence[RunSummary]) -> str:
    """Loss, perplexity and bits per byte on held-out text."""
    if not any(run.measured("text") for run in runs):
        return ""
    return f'<div class="last">{tables.evals_table(runs)}</div>'


# In the order of the page; each returns HTML, and nothing where nothing was measured.
SECTIONS: tuple[Section, ...] = (
    text_section,
    tasks_section,
    inside_section,
)


def evaluations(runs: Sequence[RunSummary]) -> str:
    """All sections that have something to say."""
    return "".join(section(runs) for section in SECTIONS)
