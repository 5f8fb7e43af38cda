"""The frame of every page: style sheet, script, policy. It names no other file and no address."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from patchtrain import __version__
from patchtrain.files import write_text

# Nothing may be fetched, whatever a run's files contain; the browser itself enforces it.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #dde1e6;
  --page: #fbfbfa; --card: #fff; --grid: rgba(60,70,80,.14); --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #9aa4af; --line: #31373e; --page: #14171a; --card: #1b1f23;
    --grid: rgba(200,210,220,.14); --warn: #e0b050; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .4rem; overflow-wrap: anywhere; }
h4 { font-size: .92rem; margin: 1.1rem 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
.lead p { font-size: 1.08rem; max-width: 46rem; }
.note { color: var(--soft); font-size: .9rem; max-width: 46rem; }
.missing { border-left: 3px solid var(--warn); padding: .1rem 0 .1rem .8rem; margin: 1rem 0; }
.missing p { font-size: .92rem; margin: .25rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem .9rem; margin: .6rem 0; padding: 0; }
.legend button { display: inline-flex; align-items: center; gap: .45rem; font: inherit;
  font-size: .86rem; color: var(--ink); background: none; border: 0; padding: .2rem 0;
  cursor: pointer; text-align: left; overflow-wrap: anywhere; }
.legend button[aria-pressed=false] { opacity: .4; text-decoration: line-through; }
.legend svg { flex: none; }
.plot { width: 100%; height: 400px; } .plot.small { height: 280px; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
td { min-width: 4.2rem; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, tbody th { text-align: left; font-weight: 500; }
th:last-child, td:last-child { padding-right: 0; }
.named tbody th { min-width: 9.5rem; }
.wide td { min-width: 11rem; max-width: 24rem; white-space: normal; overflow-wrap: anywhere; }
.last td:last-child { min-width: 13rem; white-space: normal; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
  gap: .8rem; margin: .8rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem .9rem; min-width: 0; }
.card h3 { margin: 0 0 .3rem; font-size: .86rem; color: var(--soft); font-weight: 500; }
.sample { white-space: pre-wrap; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .85rem; margin: 0; overflow-wrap: anywhere; }
details { margin: .5rem 0; } summary { cursor: pointer; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.45; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 36rem) { main { padding: 1.2rem .9rem 3rem; } .plot { height: 330px; }
  h1 { font-size: 1.4rem; } th, td { padding-right: .7rem; } }
"""

# Colours follow the style sheet; a finger scrolls the page instead of zooming the figure.
SCRIPT = """
(function () {
  var plots = Array.prototype.slice.call(document.querySelectorAll('.plotly-graph-div'));
  function value(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }
  function theme() {
    plots.forEach(function (plot) {
      Plotly.relayout(plot, {'font.color': value('--soft'), 'xaxis.gridcolor': value('--grid'),
        'yaxis.gridcolor': value('--grid'), 'hoverlabel.bgcolor': value('--card'),
        'hoverlabel.font.color': value('--ink'),
        'dragmode': matchMedia('(pointer: coarse)').matches ? false : 'zoom'});
    });
  }
  theme();
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', theme);
  document.querySelectorAll('.legend button').forEach(function (button) {
    button.addEventListener('click', function () {
      var shown = button.getAttribute('aria-pressed') !== 'true';
      button.setAttribute('aria-pressed', String(shown));
      plots.forEach(function (plot) {
        var hit = [];
        plot.data.forEach(function (trace, i) {
          if (trace.meta === button.dataset.key) hit.push(i);
        });
        if (hit.length) Plotly.restyle(plot, {visible: shown}, hit);
      });
    });
  });
})();
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page of ``parts``, which are HTML; the ``title`` is text, ``style`` more of STYLE.

    The scripts that figures need are in it if a part holds one.
    """
    body = [part for part in parts if part]
    if drawn := any('class="plot' in part for part in body):
        from patchtrain.report.figures import script  # heavy

        body.insert(0, script())
    body.append(f"<footer>Made by patchtrain {html.escape(__version__)}.</footer>")
    return _PAGE.format(
        policy=POLICY,
        title=html.escape(title),
        style=STYLE + style,
        body="\n".join(body),
        script=SCRIPT if drawn else "",
    )


def write(text: str, out: Path) -> Path:
    """Write a page to ``out``, replaced whole; returns its path."""
    # Half a surrogate pair, which JSON can hold, is no text for a file.
    write_text(out, text.encode("utf-8", "replace").decode("utf-8"))
    return out


def paragraphs(sentences: Iterable[str]) -> str:
    """Sentences as HTML, escaped."""
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def note(text: str) -> str:
    """What explains the table or figure beside it, as HTML."""
    return f'<p class="note">{html.escape(text)}</p>'
