"""The live page: one document with its style and script in it, which asks only its own server.

Lighter than the report's page, which holds all of plotly: the curves are drawn as SVG by its own
script (``live.js``), so that a phone at the other end of a tunnel opens it at once. All that comes
from a run's files is put in as text, never as markup; the content security policy lets no other
script run, and nothing be fetched from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from patchtrain.report.formats import percent
from patchtrain.report.template import STYLE as REPORT_STYLE
from patchtrain.watch.state import State
from patchtrain.watch.words import cells, facts, headline

_SCRIPT = files("patchtrain.watch").joinpath("live.js").read_text("utf-8")
_STYLE = (
    REPORT_STYLE
    + """
[hidden] { display: none !important; }
h1::before { content: ""; display: inline-block; width: .6em; height: .6em; border-radius: 50%;
  margin-right: .4em; background: var(--soft); }
[data-status=running] h1::before, [data-status=finishing] h1::before,
[data-status=finished] h1::before { background: #159a7a; }
[data-status=stalled] h1::before, [data-status=stopped] h1::before { background: var(--warn); }
[data-status=failed] h1::before, [data-status=gone] h1::before { background: #d33; }
[data-server=lost] main > :not(#lost) { opacity: .55; }
#lost { border: 1px solid var(--warn); border-radius: .5rem; padding: .6rem .8rem; }
#bar { display: block; width: 100%; height: 22px; }
#bar .all { fill: var(--line); } #bar .done { fill: #159a7a; }
.switch { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 4 3; }
#facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13.5rem), 1fr));
  gap: .6rem; margin: 1rem 0; }
#facts dt { color: var(--soft); font-size: .82rem; } #facts dd { margin: 0; font-size: .95rem;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
#facts .card { padding: .45rem .7rem; }
#axes { display: flex; flex-wrap: wrap; gap: .4rem; margin: .6rem 0; }
#axes button, #runs button { font: inherit; font-size: .88rem; color: var(--ink); cursor: pointer;
  background: none; border: 1px solid var(--line); border-radius: .5rem; padding: .35rem .7rem; }
#axes button[aria-pressed=true], #runs button[aria-pressed=true] { border-color: var(--ink);
  background: var(--card); }
#plot { display: block; width: 100%; height: 340px; touch-action: pan-y; }
#plot text { fill: var(--soft); font-size: 12px; } #plot .switch-label { fill: var(--ink); }
#plot .grid { stroke: var(--grid); } #plot .cursor { stroke: var(--soft); }
.curve { fill: none; stroke-linejoin: round; }
.curve.patch { stroke: #b9599b; stroke-width: 1.8; stroke-dasharray: 2 3; }
.curve.token { stroke: #2f7fc1; stroke-width: 1.3; opacity: .8; }
.curve.validation { stroke: #d5641c; stroke-width: 2.6; } circle.validation { fill: #d5641c; }
#kinds { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .86rem; }
#kinds span::before { content: ""; display: inline-block; width: 1.6rem; margin-right: .45rem;
  vertical-align: .25em; border-top: 2px solid #2f7fc1; }
#kinds .patch::before { border-top: 2px dotted #b9599b; }
#kinds .validation::before { border-top: 3px solid #d5641c; }
#reading { min-height: 1.5em; }
.chosen { background: var(--card); }
@media (max-width: 36rem) { #facts { grid-template-columns: 1fr 1fr; gap: .45rem; }
  #facts .card { padding: .35rem .55rem; } #plot { height: 300px; } }
"""
)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src {_hash(_SCRIPT)}; "
    f"style-src {_hash(_STYLE)}; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>patchtrain</title>
<style>{_STYLE}</style>
</head>
<body data-server="there" data-status="waiting" data-points="0">
<main>
<p id="lost" role="status" hidden></p>
<noscript><p>The curves are drawn by a script of this page's own, which the browser does not run;
patchtrain watch shows the same in the terminal.</p></noscript>
<section id="several" hidden>
<p id="summary"></p>
<div class="scroll"><table id="runs"></table></div>
</section>
<h1 id="headline">asking how it stands</h1>
<div id="problems" class="missing" hidden></div>
<svg id="bar" role="img" aria-label="progress"></svg>
<dl id="facts"></dl>
<h2>Loss</h2>
<div id="axes">
<button type="button" data-axis="flops" aria-pressed="true">compute</button>
<button type="button" data-axis="step" aria-pressed="false">steps</button>
<button type="button" data-axis="tokens" aria-pressed="false">tokens</button>
<button type="button" data-axis="seconds" aria-pressed="false">time</button>
</div>
<div id="kinds"></div>
<svg id="plot" role="img" aria-label="loss"></svg>
<p id="none" class="note">There are no losses to draw yet.</p>
<p id="reading" class="note"></p>
<p class="note">Patch loss is the loss of the K tokens of the next patch, all predicted from one
position: it cannot be compared with token loss. Validation reads held-out text token by token in
every stage.</p>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def run_to_dict(key: str, state: State) -> dict[str, Any]:
    """What the page shows of a run beside its curves; JSON types, all of it text or share."""
    return {
        "key": key,
        "name": state.name,
        "status": state.status,
        "over": state.over,
        "headline": headline(state),
        "facts": facts(state),
        "cells": cells(state),
        "problems": list(state.problems),
        "share": state.share,
        "percent": percent(state.share),
        "switches": state.switch_shares,
    }
