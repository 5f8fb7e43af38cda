"""Tables on a terminal: no number is cut, however narrow it is."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from patchtrain.report import terminal
from patchtrain.report.compare_words import CONTENDER_HEAD

LONG = "hidden_size64-K4-r0.3-optimizer_at_switchsecond-slot_weightspower"
ROW = [LONG, "2.1234", "0.0123", "-0.0312", "-0.0401 to -0.0223", "-0.0312 (-0.0401 to -0.0223)",
       "5", "0.008", "16.4M", "12.3 TFLOP", "1 h 12 min"]  # fmt: skip


def printed(head: list[str], rows: list[list[str]], width: int | None) -> str:
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            terminal, "console", lambda asked=150: Console(file=file, width=width or asked)
        )
        terminal.print_table(head, rows)
    return file.getvalue()


@given(st.integers(min_value=55, max_value=220))
def test_every_number_and_heading_is_whole_at_any_width(width: int) -> None:
    lines = printed(list(CONTENDER_HEAD), [ROW, ROW], width).splitlines()
    assert max(map(len, lines)) <= width
    for cell in [*CONTENDER_HEAD[1:], *ROW[1:]]:
        assert any(f"  {cell} " in f"  {line} " for line in lines), cell
    words = "".join(line.split()[0] for line in lines if line.strip())
    assert words.count("-slot_weightspower") >= 2  # folded, not cut


def test_a_bill_on_a_narrow_terminal_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "console", lambda asked=150: Console(width=60))
    terminal.print_table(
        ("stage", "steps", "tokens/step", "positions/step", "tokens", "compute", "share"),
        [["1 patches of 4", "12,345", "2,097,152", "524,288", "25.9G", "123.4 TFLOP", "33.3%"]],
    )
    out = capsys.readouterr().out
    for cell in ("12,345", "2,097,152", "524,288", "25.9G", "123.4 TFLOP", "33.3%"):
        assert f" {cell} " in out.replace("\n", " \n"), cell


def test_a_file_gets_one_table_as_wide_as_it_needs() -> None:
    lines = printed(list(CONTENDER_HEAD), [ROW], None).splitlines()
    assert any(all(cell in line for cell in ROW[1:]) for line in lines)
