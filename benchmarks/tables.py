"""From the benchmarks' JSON to the tables that the docs quote, with the verdict on each target.

python benchmarks/tables.py            writes results/NAME.md from each results/NAME.json
python benchmarks/quote.py             and puts them into README.md and docs/
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table_parts import head, line, verdict
from tables_of_quality import (
    again,
    boundaries,
    copying,
    evidence,
    instructions,
    map_of_gains,
    overview,
    study,
    zero_shot,
)

from patchtrain.advice.ranges import short
from patchtrain.advice.reasons import rows_of
from patchtrain.files import write_text

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the results")
    folder = parser.parse_args().results
    results: dict[str, dict[str, Any]] = {}
    kept = sorted((folder / "evidence").glob("*.json"))
    tables = {**TABLES, **{f"evidence/{file.stem}": evidence for file in kept}}
    for name, table in tables.items():
        file = folder / f"{name}.json"
        if not file.exists():
            script = name.replace("-", ".py ", 1) if "-" in name else f"{name}.py"
            print(f"{file} is missing; python benchmarks/{script} writes it", file=sys.stderr)
            continue
        result = results[name] = json.loads(file.read_text(encoding="utf-8"))
        lines = [*table(result), "", source(result, f"{name}.json")]
        write_text(file.with_suffix(".md"), "\n".join(lines) + "\n")
        print(f"written to {file.with_suffix('.md')}")
    if studies := {file.stem: results[f"evidence/{file.stem}"] for file in kept}:
        write_text(folder / "evidence.md", "\n".join(overview(studies)) + "\n")
        print(f"written to {folder / 'evidence.md'}")
    if not results:
        raise SystemExit(f"tables.py: no result in {folder}")


def loss(result: dict[str, Any]) -> list[str]:
    """Time and memory of each method against the papers' formula."""
    rows = result["rows"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = head("V", "K", *(f"{method}" for method in methods))
    found = {(row["vocab"], row["patch_size"], row["method"]): row for row in rows}
    for vocab, K in dict.fromkeys((row["vocab"], row["patch_size"]) for row in rows):
        cells = [found.get((vocab, K, method)) for method in methods]
        lines.append(line(f"{vocab:,}", K, *(loss_cell(cell) for cell in cells)))
    lines += ["", "Each cell: seconds (and their ratio to `papers`), peak memory beyond inputs and "
              "gradients (and its ratio)."]  # fmt: skip
    ours = [row for row in rows if row["method"] == "chunked"]
    for row in ours:
        if (row["vocab"], row["patch_size"]) == (32000, 4):
            lines.append(verdict("at V = 32,000, K = 4 at most 0.80 of the papers' time",
                                 row["ratio_seconds"], row["ratio_seconds"] <= 0.8))  # fmt: skip
            if row["ratio_peak"] is not None:
                lines.append(verdict("and at most 0.10 of their memory", row["ratio_peak"],
                                     row["ratio_peak"] <= 0.1))  # fmt: skip
    slower = [row for row in ours if row["patch_size"] >= 2 and row["vocab"] >= 4000]
    if slower:
        worst = max(row["ratio_seconds"] for row in slower)
        lines.append(verdict("at no K >= 2 and V >= 4,096 slower; the slowest", worst, worst <= 1))
    for what, key in (("time", "seconds"), ("memory", "peak_bytes")):
        for vocab in dict.fromkeys(row["vocab"] for row in ours):
            values = [row[key] for row in ours if row["vocab"] == vocab]
            if None not in values and len(values) > 1 and min(values) > 0:
                most = max(values) / min(values)
                lines.append(verdict(f"flat in K: {what} at V = {vocab:,}, most to least", most,
                                     most <= 1.15))  # fmt: skip
    return lines


def loss_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    cell = f"{row['seconds']:.3f} s ({row['ratio_seconds']:.2f})"
    if row["peak_bytes"] is not None and row["ratio_peak"] is not None:
        cell += f", {row['peak_bytes'] / 1e6:.0f} MB ({row['ratio_peak']:.2f})"
    return cell


def stages(result: dict[str, Any]) -> list[str]:
    """A step at each patch size."""
    lines = head("K", "seconds a step (least to most)", "tokens/s", "speed-up", "of the limit K",
                 "embed and pool", "loss", "clip and AdamW", "the rest")  # fmt: skip
    for row in result["rows"]:
        parts, least_most = row["parts"], " to ".join(f"{s:.3f}" for s in row["seconds_spread"])
        rest = row["seconds"] - sum(parts.values())
        lines.append(line(
            row["patch_size"], f"{row['seconds']:.3f} ({least_most})",
            f"{row['tokens_per_s']:,.0f}", f"{row['speedup']:.2f}",
            f"{row['share_of_limit']:.3f}",
            *(f"{seconds:.3f} s" for seconds in (*parts.values(), rest)),
        ))  # fmt: skip
    lines.append("")
    lines.append(f"A model of {result['settings']['parameters']:,} parameters. Parts are timed "
                 f"on their own; the rest is the transformer.")  # fmt: skip
    worst = min(row["share_of_limit"] for row in result["rows"] if row["patch_size"] <= 8)
    lines.append(verdict("at least 0.95 K for K <= 8; the least", worst, worst >= 0.95))
    return lines


def overhead(result: dict[str, Any]) -> list[str]:
    """The three loops."""
    lines = head("loop", "tokens/s", "of bare", "of trainer", "all pieces: median (least to most)")
    for row in result["rows"]:
        ratios = (f"{row[f'ratio_to_{other}']:.3f}" for other in ("bare", "trainer"))
        every = {name: f"{rate:,.0f}" for name, rate in row["all_tokens_per_s"].items()}
        lines.append(line(
            row["loop"], f"{row['tokens_per_s']:,.0f}", *ratios,
            f"{every['median']} ({every['least']} to {every['most']})",
        ))  # fmt: skip
    ours = next(row for row in result["rows"] if row["loop"] == "patchtrain")
    lines += [
        "",
        verdict("at least 0.95 of the bare loop", ours["ratio_to_bare"],
                ours["ratio_to_bare"] >= 0.95),
        verdict("not slower than transformers' Trainer", ours["ratio_to_trainer"],
                ours["ratio_to_trainer"] >= 1),
    ]  # fmt: skip
    return lines


def resume(result: dict[str, Any]) -> list[str]:
    """Going on after few steps and after many, and writing a checkpoint."""
    lines = head("what", "seconds (least to most)")
    rows = [(f"from `--resume` to the first batch, after {row['step']:,} steps", row["seconds"])
            for row in result["rows"]]  # fmt: skip
    rows += [(f"writing: {name}", time) for name, time in result["writing_seconds"].items()]
    for what, time in rows:
        lines.append(
            line(what, f"{time['median']:.2f} ({time['least']:.2f} to {time['most']:.2f})")
        )
    return lines


def loader(result: dict[str, Any]) -> list[str]:
    """Batches a second."""
    lines = head("documents", "read", "cold, batches/s", "times training", "warm, batches/s",
                 "times training", "opening", "memory")  # fmt: skip
    for row in result["rows"]:
        lines.append(line(
            f"{row['documents']:,}", row["kind"],
            *(text for state in ("cold", "warm") for text in (
                f"{row[f'{state}_batches_per_s']:,.0f}",
                f"{row[f'{state}_times_training']:,.0f}")),
            f"{row['opening_seconds']:.1f} s", f"{row['anonymous_bytes'] / 1e6:.0f} MB",
        ))  # fmt: skip
    least = min(row[f"{state}_times_training"] for row in result["rows"]
                for state in ("cold", "warm"))  # fmt: skip
    most = max(row["anonymous_bytes"] for row in result["rows"])
    lines += ["", verdict("at least 50 times what training takes; the least", least, least >= 50),
              verdict("memory flat, in MB; the most", most / 1e6, most < 64e6)]  # fmt: skip
    return lines


def cost(result: dict[str, Any]) -> list[str]:
    """The formula against torch's counter, and published hours."""
    lines = head("model", "what it has", "K", "formula, MFLOP a position", "counted", "ratio")
    for row in result["rows"]:
        lines.append(line(
            row["model"], row["stands_for"], row["patch_size"], f"{row['formula'] / 1e6:.3f}",
            f"{row['counted'] / 1e6:.3f}", f"{row['ratio']:.4f}",
        ))  # fmt: skip
    worst = max((row["ratio"] for row in result["rows"]), key=lambda ratio: abs(ratio - 1))
    lines += ["", verdict("within 1 % of what torch counts; the worst", worst,
                          abs(worst - 1) <= 0.01), ""]  # fmt: skip
    lines += head("recipe", "device", "published device-hours", "our count", "share of the peak")
    for row in result["published"]:
        lines.append(line(
            row["recipe"], row["device"], f"{row['device_hours']:,}",
            f"{row['flops'] / 1e18:,.0f} EFLOP", f"{row['utilisation']:.2f}",
        ))  # fmt: skip
    return lines


def scaling(result: dict[str, Any]) -> list[str]:
    """Each curve, and its exponents."""
    names = {"width": "parameters", "context_length": "context length T", "patch_size": "K",
             "vocabulary": "vocabulary", "processes": "processes",
             "corpus_tokens": "tokens of the store"}  # fmt: skip
    lines = head("varied", "from", "to", "seconds a step", "exponent", "memory", "exponent")
    for name, exponents in result["exponents"].items():
        rows = [row for row in result["rows"] if row["varied"] == name]
        x = "parameters" if name == "width" else "value"
        ends = (rows[0], rows[-1])
        lines.append(line(
            names[name], *(f"{row[x]:,}" for row in ends),
            ", ".join(f"{row['seconds']:.3f}" for row in rows), _exponent(exponents["seconds"]),
            ", ".join("-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB"
                      for row in rows), _exponent(exponents["peak_bytes"]),
        ))  # fmt: skip
    off = max(
        abs(end / row["seconds"] - 1) for row in result["rows"] for end in row["seconds_spread"]
    )
    lines += ["", f"Seconds are medians of a row's steps; the farthest single step is {off:.0%} "
              "off its median."]  # fmt: skip
    return lines


def _exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def advice(result: dict[str, Any]) -> list[str]:
    """How far the advice is off on published points it has not seen."""
    lines = head("what was left out and predicted", "points", "largest error", "root mean square",
                 "largest gain measured", "inside the range given")  # fmt: skip
    for row in result["rows"]:
        inside = "-" if row["inside"] is None else f"{row['inside']} of {row['points']}"
        numbers = (f"{row[key]:.4f}" for key in ("largest_error", "rms_error", "largest_gain"))
        lines.append(line(row["group"], row["points"], *numbers, inside))
    lines += ["", "What it advises for some budgets:", ""]
    lines += head("parameters", "tokens", "scarce", "advice", "gain", "range", "compute",
                  "tokens read", "outside of what was measured")  # fmt: skip
    for row in result["advised"]:
        share = (f"lambda = {row['patch_fraction']:g}" if row["step_fraction"] is None
                 else f"r = {row['step_fraction']:g}")  # fmt: skip
        what = f"K = {row['patch_size']}, {share}{rows_of(row['plan'].get('rows'))}"
        gain, ends = row["gain"], row["interval"]
        if row["patch_size"] == 1:
            what, gain_range = "token level", ("-", "-")
        elif gain is None:
            gain_range = "not known", "-"
        else:
            gain_range = f"{gain:+z.3f}", f"{ends[0]:+z.3f} to {ends[1]:+z.3f}"
        lines.append(line(
            short(row["parameters"]), short(row["tokens"]), row["scarce"], what, *gain_range,
            f"{row['cost_ratio']:.3g}", short(row["tokens_read"]),
            ", ".join(text.split(":")[0] for text in row["extrapolates"]) or "nothing",
        ))  # fmt: skip
    fits = result["fits"]
    a, b = fits["equal_data"]["coefficients"]
    log_c, power = fits["equal_compute"]["coefficients"]
    return [
        *lines,
        "",
        f"Gains and errors in nats a token; D / N is tokens for each parameter. Equal data, K = 4, "
        f"lambda = 2/3: gain = {a:.4f} + {b:.4f} ln(D / N), zero at "
        f"{fits['equal_data']['break_even']:.0f}. Equal compute, K = 6, r = 0.3: gain = "
        f"{math.exp(log_c):.3f} (D / N)^{power:.3f}.",
    ]


def memory(result: dict[str, Any]) -> list[str]:
    """What training took, and what was told of it."""
    lines = head("model", "K", "with", "parameters", "gradients", "AdamW", "activations", "loss",
                 "told", "when", "measured", "told / measured")  # fmt: skip
    for row in result["rows"]:
        told = row["estimate"]
        extras = ["checkpointing"] if row["gradient_checkpointing"] else []
        extras += ["bf16"] if row["bf16"] else []
        extras += [f"{row['passes']} passes"] if row["passes"] > 1 else []
        extras += [f"{row['backend']} loss"] if row["backend"] != "chunked" else []
        parts = ("parameters", "gradients", "optimizer", "activations", "loss", "peak")
        lines.append(line(
            row["model"], row["patch_size"], ", ".join(extras) or "-",
            *(f"{told[part] / 1e6:.1f}" for part in parts), told["when"],
            f"{row['measured_bytes'] / 1e6:.1f}", f"{row['ratio']:.3f}",
        ))  # fmt: skip
    lines += ["", "In MB; parts are each at their most, not all at one time."]
    worst = max(abs(row["ratio"] - 1) for row in result["rows"])
    lines.append(verdict("within 0.15 of what was measured; the farthest", worst, worst <= 0.15))
    return lines


def traces(result: dict[str, Any]) -> list[str]:
    """Steps of large models on fake ranks."""
    lines = head("model", "layers", "ranks", "K", "parameters a rank", "traced, GB", "told, GB",
                 "told / traced", "told of a GPU, GB", "fits")  # fmt: skip
    for row in result["rows"]:
        fits = "yes" if row["fits"] else "no: " + "; ".join(row["would_fit"])
        lines.append(line(
            row["model"], row["layers"], f"{row['ranks']:,}", row["patch_size"],
            f"{row['part']:,}", f"{row['traced_bytes'] / 1e9:.2f}",
            f"{row['estimate']['peak'] / 1e9:.2f}", f"{row['ratio']:.3f}",
            f"{row['gpu_estimate_bytes'] / 1e9:.2f}", fits,
        ))  # fmt: skip
    settings = result["settings"]
    right = sum(row["parts_as_expected"] for row in result["rows"])
    worst = max(abs(row["ratio"] - 1) for row in result["rows"])
    lines += [
        "",
        f"Device passes of {settings['sequences']} sequences of {settings['context_length']:,} "
        f"positions, bf16, gradient checkpointing, {settings['optimizer']}; devices of "
        f"{settings['device_gb']:g} GB, {settings['reserve']:.0%} of it left free.",
        f"- Every weight and gradient cut as it should be: in {right} of {len(result['rows'])} "
        f"steps.",
        verdict("within 0.15 of the trace; the farthest", worst, worst <= 0.15),
    ]
    return lines


# A result's name is that of the script that writes it, and of what it was told to measure.
TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "loss": loss, "stages": stages, "stages-small": stages, "stages-small-rows": stages,
    "overhead": overhead, "loader": loader, "cost": cost, "resume": resume, "scaling": scaling,
    "advice": advice, "memory": memory, "traces": traces, "zero_shot": zero_shot,
    "boundaries": boundaries, "copying": copying, "instructions": instructions,
    "map": map_of_gains, "again": again,
    "study-ablation": study, "study-tokenizers": study,
}  # fmt: skip


def source(result: dict[str, Any], name: str) -> str:
    """Where a table comes from."""
    machine, versions = result["machine"], result["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    threads = result["settings"].get("threads")
    used = f" ({threads} threads used)" if threads and not machine.get("gpu") else ""
    return (
        f"From `results/{name}`: `{result['command']}` on {where}{used}, torch "
        f"{versions['torch']}, transformers {versions['transformers']}; held equal: "
        f"{result['held_equal']}."
    )


if __name__ == "__main__":
    main()
