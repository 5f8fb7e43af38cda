"""What goes on inside a model, on the terminal."""

from __future__ import annotations

from typing import Any

from patchtrain.report import inside_views as views
from patchtrain.report import patch_views, terminal


def print_inside(name: str, result: dict[str, Any]) -> None:
    """Tables of all that ``patchtrain eval --inside`` measured."""
    console = terminal.console()

    def show(title: str, rows: views.Rows) -> None:
        console.print(f"\n{title}", markup=False)
        terminal.print_table(*rows)

    console.print(f"{name}: {result['read']}, context length {result['context_length']}",
                  markup=False, soft_wrap=True)  # fmt: skip
    models, content = result["models"], result["content"]
    for model in models:
        if model["levels"][0]["layers"]:
            title = f"{model['model']}: feed-forward outputs beyond {result['threshold']:g}"
            show(title, views.neurons_rows(model))
        else:
            console.print(f"\n{model['model']}: no feed-forward parts found", markup=False)
    show("loss by token of the next patch (nats)", views.slots_rows(models))
    show("embeddings", views.embeddings_rows(models))
    show("length of a patch's embedding against its tokens'", views.pooled_rows(models))
    if result["drift"]:
        show("from one model to the next", views.drift_rows(result["drift"]))
    show("what the patches split", patch_views.shares_rows(content["patches"]))
    large = [entry for entry in content["patches"] if entry["patch_size"] > 1]
    if large:
        show("whether they belong together", patch_views.coherence_rows(large, content["far"]))
