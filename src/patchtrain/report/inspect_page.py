"""The page of ``patchtrain inspect``: one file about the patches of one text."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from patchtrain.files import check_place
from patchtrain.report import patch_views as views
from patchtrain.report.figures import to_html
from patchtrain.report.formats import count
from patchtrain.report.tables import table
from patchtrain.report.template import note, page, write

NOTES = {
    "shares": "A word is a longest run of letters, digits and marks; a sentence ends after . ! ? "
    "or a blank line. The share of patches that end inside a word depends on the tokenizer, hardly "
    "on K; larger patches cut fewer of the words, and hold the ends of more sentences.",
    "cosines": "The mean cosine of the embeddings of two tokens, with its standard error. Trained "
    "embeddings share a direction, so a cosine says something only against that of random tokens.",
    "information": "What a token tells of another one a distance away, counted over the most "
    "frequent tokens, less what the same counts tell when one side is shuffled.",
}


def write_inspect_page(
    found: dict[str, Any], shown: dict[int, list[str]], out: Path, title: str
) -> Path:
    """Write what ``inspect_text`` found to ``out`` (replaced whole) and return its path.

    ``shown``: the texts of some patches, by patch size.
    """
    check_place(out, "the page")
    return write(render(found, shown, title), out)


def render(found: dict[str, Any], shown: dict[int, list[str]], title: str) -> str:
    """The page as text."""
    patches, distances, far = found["patches"], found["distances"], found["far"]
    large = [entry for entry in patches if entry["patch_size"] > 1]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="lead"><p>{html.escape(_lead(found))}</p></div>',
    ]
    if any(shown.values()):
        body.append("<h2>The text in patches</h2>")
        body += [f"<h3>K = {K}</h3>{views.coloured(texts)}" for K, texts in shown.items()]
    body += [
        "<h2>What patches split</h2>",
        to_html(views.shares_figure(patches), "shares"),
        table(*views.shares_rows(patches), "Shares"),
        note(NOTES["shares"]),
        "<h2>Whether the tokens of a patch belong together</h2>",
    ]
    if any(entry["cosines"] for entry in large):
        body += [to_html(views.cosine_figure(large, far), "cosines"), note(NOTES["cosines"])]
    body += [
        table(*views.coherence_rows(large, far), "Coherence"),
        "<h3>By distance</h3>",
        to_html(views.information_figure(distances), "information"),
        note(NOTES["information"]),
        table(*views.distance_rows(distances), "By distance"),
    ]
    return page(title, body, views.STYLE)


def _lead(found: dict[str, Any]) -> str:
    documents = found["documents"]
    left_out = found["left_out"]
    text = f"{count(found['tokens'])} tokens of {count(documents)} document{'s' * (documents != 1)}"
    text += f" ({found['read']})." if found.get("read") else "."
    if left_out:
        text += f" {count(left_out)} more documents do not come back from their tokens."
    return text
