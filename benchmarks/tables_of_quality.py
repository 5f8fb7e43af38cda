"""Tables of what was measured on models: accuracy, instructions, patches, studies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from table_parts import head, line, verdict

from patchtrain.advice.ranges import short
from patchtrain.analysis.studies.question import BASELINE
from patchtrain.report.compare_words import (
    CONTENDER_HEAD,
    budget_rows,
    contender_rows,
    held,
    loss_rows,
    lost_notes,
    rate_rows,
    tuned_on,
    with_interval,
)
from patchtrain.report.formats import NONE, accuracy, part_of
from patchtrain.report.study_page import arm_rows, difference_rows


def zero_shot(result: dict[str, Any]) -> list[str]:
    """Accuracies, and whether lm-eval's own command line says the same."""
    lines = head("task", "accuracy, %", "by length, %", "chance, %", "longest answer, %", "ties",
                 "documents")  # fmt: skip
    for row in result["rows"]:
        cells = (accuracy(row[key], row.get(f"{key}_stderr"))
                 for key in ("score", "by_length", "chance", "longest_answer"))  # fmt: skip
        token = row["start_token"].replace("|", "\\|")  # or the cell would end there
        begins = f", begun with `{token}`" if row["task"] == "blimp" else ""
        lines.append(line(row["task"] + begins, *cells, row["ties"],
                          part_of(row["documents"], row["documents_available"])))  # fmt: skip
    settings, checks = result["settings"], result["checks"]
    what = (f"{settings['parameters']:,} parameters", settings["dtype"], "no shots",
            f"lm-eval {result['versions']['lm_eval']}")  # fmt: skip
    lines += ["", f"`{settings['model']}`: {', '.join(what)}."]
    first = next((row for row in result["rows"] if row["task"] == "blimp"), None)
    if first:
        lines.append(verdict("BLiMP near 79 %, within 2", 100 * first["score"],
                             abs(first["score"] - 0.79) <= 0.02))  # fmt: skip
    if checks:
        same = sum(math.isclose(row["here"], row["command_line"], rel_tol=1e-5) for row in checks)
        first = f"The first {settings['check_limit']} documents of each task through lm-eval's"
        lines.append(f"- {first} command line: {same:,} of {len(checks):,} metrics the same.")
    return lines


def boundaries(result: dict[str, Any]) -> list[str]:
    """What the borders of patches tell of the loss, by seed and over seeds."""
    fixed = [row for row in result["rows"] if row["arm"] == "fixed"]
    across = result["across_seeds"]
    lines = head("K", "patches that end inside a word", "words cut", "patches with two sentences",
                 "with two documents", "mutual information inside, nats")  # fmt: skip
    for entry in result["content"]["patches"]:
        if entry["patch_size"] in (2, 3, 4, 6, 8, 12, 16):
            names = ("end_in_word", "words_cut", "two_sentences", "two_documents")
            lines.append(line(entry["patch_size"], *(f"{entry[name]:.1%}" for name in names),
                              f"{entry['information_inside']:.4f}"))  # fmt: skip
    lines += ["", *head("tokens apart", "mutual information, nats")]
    for entry in result["content"]["distances"]:
        if entry["distance"] in (1, 2, 4, 8, 16, 64, 256, 1024) and entry["pairs"]:
            lines.append(line(entry["distance"], f"{entry['nats']:.4f}"))
    lines += ["", *head("a patch that", "share", "how",
                        *(f"seed {row['seed']}" for row in fixed), "mean over seeds")]  # fmt: skip
    for name, share in fixed[0]["shares"].items():
        for kind, how in (("alone", "against other patches"), ("same_tokens", "the same tokens")):
            cells = (_interval(row[kind][name]) for row in fixed)
            lines.append(line(name, f"{share:.1%}", how, *cells, _interval(across[kind][name])))
    lines += ["", "Nats a token more, with 95 % intervals (within a seed over stretches of the "
              "text; over seeds, of their spread): than other patches, and than the same tokens in "
              "patches that are cut elsewhere.", ""]  # fmt: skip
    lines += head("variance of the patch loss explained by", *(f"seed {r['seed']}" for r in fixed))
    for key, name in (("explained_by_borders", "borders"), ("explained_by_tokens", "tokens"),
                      ("explained_by_both", "both")):  # fmt: skip
        lines.append(line(name, *(f"{row[key]:.2%}" for row in fixed)))
    K = result["settings"]["patch_size"]
    lines += ["", *head("loss of tokens that", *(f"place {slot + 1}" for slot in range(K)))]
    for kind, name in (("begins", "begin a word, or none"), ("goes_on", "go on with a word")):
        means = [statistics.mean(row["places"][kind][slot] for row in fixed) for slot in range(K)]
        lines.append(line(name, *(f"{mean:.3f}" for mean in means)))
    cuts = ", ".join(_interval(row["places"]["cut"]) for row in fixed)
    lines += ["", f"What the first place does to the second kind more than to the first: {cuts}; "
              f"mean over seeds {_interval(across['cut'])}. Between the best and the worst phase "
              f"lie {across['phase_range']['value']:.4f} nats a token.", ""]  # fmt: skip
    lines += head("seed", "patches begin", "patch loss", "token loss at the end")
    for row in result["rows"]:
        arm = "at fixed places" if row["arm"] == "fixed" else "at a random phase"
        lines.append(line(row["seed"], arm, f"{row['patch_loss']:.4f}", f"{row['token_loss']:.4f}"))
    return [*lines, "", "A random phase less fixed places, paired by seed: patch loss "
            f"{_interval(across['random_phase_patch_loss'])}, token loss "
            f"{_interval(across['random_phase_token_loss'])}."]  # fmt: skip


def _interval(found: dict[str, float | None]) -> str:
    text, low, high = f"{found['value']:+z.4f}", found["low"], found["high"]
    return text if low is None else f"{text} ({low:+z.4f} to {high:+z.4f})"


def study(result: dict[str, Any]) -> list[str]:
    """The arms of a study, and their differences."""
    seeds = ", ".join(map(str, result["seeds"]))
    lines = head("arm", "what it is", "bits per byte", "standard deviation", "steps",
                 "tokens read", "compute off")  # fmt: skip
    lines += [line(*(cell.replace("|", "/") for cell in row)) for row in arm_rows(result)]
    if rows := difference_rows(result):
        lines += ["", *head("arm", "less", "difference", "95 % interval", "seeds",
                            "compute to match")]  # fmt: skip
        lines += [line(*row) for row in rows]
    lines += ["", f"Mean over seeds {seeds}; differences paired by seed, in bits per byte, below "
              "zero: the first arm ended lower."]  # fmt: skip
    lines += [f"- Failed: {name}: {reason}" for name, reason in result["failed"].items()]
    return lines


def evidence(result: dict[str, Any]) -> list[str]:
    """A comparison kept in results/evidence/: all arms, their rates, ratios at equal loss.

    Times are left out: the runs were trained beside other work, on several machines.
    """
    begun = [
        item
        for item in result["contenders"]
        if any(tried["bits_per_byte"] is not None for tried in item["tried"])
    ]
    result = {**result, "contenders": begun}
    words = {item["name"]: item["words"] for item in begun}
    columns = [name for name in CONTENDER_HEAD if name != "time"]
    lines = head("arm", "what it is", *columns[1:])
    for row in contender_rows(result):
        lines.append(line(row[0], words[row[0]].replace("|", "/"), *row[1 : len(columns)]))
    if len(result["rates"]) > 1:
        names, rows = rate_rows(result)
        lines += ["", *head(f"with {tuned_on(result)} at rate", *names[1:])]
        lines += [line(*row) for row in rows]
    if rows := [row for row in loss_rows(result) if row[1] != NONE]:
        lines += [
            "",
            *head("at equal loss", "compute ratio", "95 % interval", "seeds with a ratio"),
        ]
        lines += [line(*row[:3], row[5]) for row in rows]
    names, rows = budget_rows(result)
    if len(names) > 2 and rows:
        lines += ["", *head("less token level with that much compute", *names[1:])]
        lines += [line(*row) for row in rows]
    notes, settings = lost_notes(result), result["settings"]
    if settings["compiled"]:
        notes.append(f"{settings['compiled']} of {settings['runs']} runs were compiled by torch, "
                     "the same but for rounding.")  # fmt: skip
    return [*lines, "", *held(result), *(f"- {note}" for note in notes)]


OVERVIEW_HEAD = (
    "study", "text", "parameters", "steps", "arm", "rates, of it and of token level",
    "difference, bits per byte", "lower on", "compute ratio at equal loss",
    "less token level with more compute",
)  # fmt: skip


def overview(studies: Mapping[str, dict[str, Any]]) -> list[str]:
    """Every comparison with token level at equal compute over several seeds, whatever came out."""
    rows = [
        row
        for name, result in studies.items()
        if result["held_equal"] == "compute"
        for item in result["contenders"]
        if item["reference"] == BASELINE and item["difference"] and item["difference"]["count"] > 1
        for row in [_overview_row(name, result, item)]
    ]
    return [
        *head(*OVERVIEW_HEAD),
        *(line(*row) for row in sorted(rows, key=lambda row: row[1:4])),
        "",
        *_targets(studies),
        "",
        "Held equal: compute. Each arm is at the best of the rates it was tried at, by the seeds "
        "that each study names; intervals of 95%, Student's t over paired seeds. The ratio is the "
        "arm's compute over what token level needs for the same loss, the geometric mean of the "
        "seeds; a seed that ends below token level's longest runs counts as the bound that these "
        "are. These longer runs have one learning rate, by default the best at full length. Rows "
        "of one text and model share token level's runs.",
        "",
        "From `results/evidence/*.json`: `python benchmarks/evidence.py STUDY`.",
    ]


def _overview_row(name: str, result: dict[str, Any], item: dict[str, Any]) -> list[str]:
    arm = next(arm for arm in result["arms"] if arm["name"] == item["chosen"])
    token = next(other for other in result["contenders"] if other["name"] == BASELINE)
    run, found = arm["runs"][0], item["difference"]
    ratios = {row[0]: row[1] for row in loss_rows(result)}
    against = (item["equal_loss"] or {}).get("against") or {}
    most = max(against, key=float, default="1")
    longer = f"{most} x: {with_interval(against[most])}" if float(most) > 1 else NONE
    return [
        f"`{name}`", result["about"]["corpus"], f"{run['parameters']:,}",
        f"{run['total_steps']:,}", item["name"], f"{_rates(item)} and {_rates(token)}",
        with_interval(found), _lower_on(found),
        ratios.get(item["name"], NONE), longer,
    ]  # fmt: skip


def _rates(item: dict[str, Any]) -> int:
    """How many learning rates a contender was tried at."""
    return sum(tried["bits_per_byte"] is not None for tried in item["tried"])


def _targets(studies: Mapping[str, dict[str, Any]]) -> list[str]:
    """Whether patches first take at most so much of token level's compute, on two texts.

    By the best comparison of each text, of those over five seeds or more that leave no doubt of
    the sign.
    """
    best: dict[str, float] = {}
    for result in studies.values():
        text = result["about"]["corpus"]
        for item in result["contenders"]:
            found, at_loss = item["difference"], (item["equal_loss"] or {}).get("compute")
            if not found or not at_loss or found["count"] < 5 or found["interval"][1] >= 0:
                continue
            ratio = at_loss["mean"] or (at_loss["bound"] or {}).get("below")
            if ratio is not None:
                best[text] = min(ratio, best.get(text, ratio))
    if len(best) < 2:
        return []
    # A bound of 0.4 is that of a run of 2.5 times the compute, but for a part of a step.
    second = round(sorted(best.values())[1], 3)
    return [
        verdict(f"at equal loss at most {most:.2f} of token level's compute on two texts, over at "
                f"least five seeds, with an interval below zero; the second best text, to three "
                f"digits and where it is a bound the bound", second, second <= most)
        for most in (0.5, 0.4)
    ]  # fmt: skip


def _lower_on(found: dict[str, Any]) -> str:
    return f"{sum(value < 0 for value in found['values'])} of {found['count']} seeds"


def again(result: dict[str, Any]) -> list[str]:
    """The main comparison trained again, beside what it was."""
    settings = result["settings"]
    lines = head("study", "arm", "when", "seeds", "difference, bits per byte", "lower on")
    for when, found in (("first", result["first"]), ("again", result["again"])):
        lines.append(line(
            f"`{settings['study']}`", settings["arm"], when, found["count"], with_interval(found),
            _lower_on(found),
        ))  # fmt: skip
    rates = ", ".join(f"{rate:g} for {name}" for name, rate in settings["rates"].items())
    seeds = ", ".join(map(str, settings["seeds"]))
    ours, token = result["seconds"][settings["arm"]], result["seconds"]["token"]
    return [
        *lines,
        "",
        f"Again with the seeds {seeds}, at the rates found before: {rates}. Then a run of "
        f"{settings['arm']} took {ours:.0f} s and one of token {token:.0f} s (means, ratio "
        f"{ours / token:.3f}), side by side on one machine.",
    ]


def copying(result: dict[str, Any]) -> list[str]:
    """The loss of each run on what its context has to copy, the best copyist first."""
    names = {
        "new": "nothing to copy",
        "one": "last token's follower",
        "two": "last two tokens' follower",
        "misleads": "another follower",
    }
    columns = (f"{title}: {result['shares'][name]:.0%}" for name, title in names.items())
    lines = head("run", "loss, nats a token", *columns)
    for row in sorted(result["rows"], key=lambda row: float(row["losses"]["two"])):
        cells = (f"{row['losses'][name]:.3f}" for name in names)
        lines.append(line(f"`{row['run']}`", f"{row['loss']:.3f}", *cells))
    return lines


def map_of_gains(result: dict[str, Any]) -> list[str]:
    """Where patches won and lost, by text, size and length; and where they begin to win."""
    points = result["rows"]
    edges = sum(bool(point["edge"]) for point in points)
    lines = [
        *_gains(points, "r"),
        "",
        "Held equal: compute. Gains in nats a token, below zero a loss; after a stroke in rows of "
        "as many tokens as at token level, else of as many positions; in brackets the seeds, else "
        f"one. Each arm is at its best of the rates tried, which in {edges} of {len(points)} "
        "points is the least or the greatest of them for one arm or both.",
    ]
    if at_data := result["rows_at_equal_data"]:
        lines += ["", *_gains(at_data, "lambda"), "", "Held equal: data. The rest as above."]
    return [*lines, *_begins(result["begins"]), *_plane(result["fit"])]


def _gains(points: list[dict[str, Any]], share: str) -> list[str]:
    """A row for each text, size, length and share, a column for each K."""
    sizes = sorted({point["patch_size"] for point in points})
    keys = ("corpus", "vocab_size", "parameters", "tokens", "steps", "share")
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in sorted(points, key=lambda point: [point[key] for key in keys]):
        rows.setdefault(tuple(point[key] for key in keys), []).append(point)
    lines = head("text", "vocabulary", "parameters", "tokens", "steps", "tokens per parameter",
                 "times read", share, *(f"K = {K}" for K in sizes))  # fmt: skip
    for (text, vocabulary, parameters, tokens, steps, part), found in rows.items():
        epochs = [point["epochs"] for point in found]
        cells = []
        for K in sizes:
            of = {point["rows"]: _seeds(point) for point in found if point["patch_size"] == K}
            cell = of.get("positions", NONE)
            cells.append(f"{cell} / {of['tokens']}" if "tokens" in of else cell)
        lines.append(line(
            text, f"{vocabulary:,}", short(parameters), short(tokens), f"{steps:,}",
            short(tokens / parameters),
            " to ".join(dict.fromkeys(f"{value:.1f}" for value in (min(epochs), max(epochs)))),
            f"{part:.2g}", *cells,
        ))  # fmt: skip
    return lines


def _seeds(point: dict[str, Any]) -> str:
    return f"{point['gain']:+z.3f}" + (f" ({point['seeds']})" if point["seeds"] > 1 else "")


def _begins(found: list[dict[str, Any]]) -> list[str]:
    """A row for each text, size, share and K, a column for each kind of rows."""
    if not found:
        return []
    between = {}
    for item in found:
        *key, rows = (item[name] for name in ("corpus", "vocab_size", "parameters", "share",
                                              "patch_size", "rows"))  # fmt: skip
        lost, won = (None if item[end] is None else short(item[end]) for end in ("lost", "won"))
        words = f"{lost} to {won}" if lost and won else f"above {lost}" if lost else f"below {won}"
        between.setdefault(tuple(key), {})[rows] = words
    columns = "begins to win at tokens, rows of as many positions", "rows of as many tokens"
    lines = ["", *head("text", "vocabulary", "parameters", "r", "K", *columns)]
    for (text, vocabulary, parameters, share, K), words in between.items():
        cells = (words.get(rows, NONE) for rows in ("positions", "tokens"))
        lines.append(line(text, f"{vocabulary:,}", f"{parameters:,}", f"{share:.2g}", K, *cells))
    return [
        *lines,
        "",
        "Between the longest run that lost and the next, where runs of more than one length were "
        "trained; tokens are those of token level, 2,048 a step.",
    ]


def _plane(fit: dict[str, Any]) -> list[str]:
    if not fit["terms"]:
        return []
    terms = " ".join(
        f"{value:+z.2f}" + f" {name}" * (name != "1") for name, value in fit["terms"].items()
    )
    off, rule, points = fit["left_out"], fit["from_tokens"], fit["points"]
    return [
        "",
        f"On code the plane gain / -ln(1 - r) = {terms} (D tokens at token level, N parameters, a "
        f"vocabulary of V; in brackets 1 or 0) goes through the {points} points at equal compute "
        f"and more than one rate. Of each point, predicted by the others, the sign is right for "
        f"{off['same_sign']} of {off['points']} (root mean square error {off['rms']:.2f}). That "
        f"patches win from {short(rule['tokens'])} tokens on, whatever else, is right for "
        f"{rule['same_sign']} of {points}; that they always lose for {fit['always_loses']}.",
    ]


def instructions(result: dict[str, Any]) -> list[str]:
    """A model before and after a short tuning."""
    kinds = [(level, kind) for level in ("prompt", "instruction") for kind in ("strict", "loose")]
    columns = (f"{level}s, {kind}" for level, kind in kinds)
    lines = head("model", "loss of held-out answers", *columns, "answers that did not end")
    for row in result["rows"]:
        answers, followed = row["answers"], row["ifeval"]
        lines.append(line(
            row["model"], f"{answers['loss']:.4f} ± {answers['loss_stderr']:.4f}",
            *(f"{followed[f'{level}_{kind}']:.1%} ± {followed[f'{level}_{kind}_stderr']:.1%}"
              for level, kind in kinds),
            f"{followed['not_ended']} of {followed['prompts']}",
        ))  # fmt: skip
    settings, tuning, last = result["settings"], result["tuning"], result["rows"][-1]
    return [
        *lines,
        "",
        f"`{settings['model']}`, {result['parameters']:,} parameters, tuned for "
        f"{settings['steps']} steps of {settings['tokens_per_step']:,} tokens at a rate of "
        f"{settings['learning_rate']:g}, seed {settings['seed']}; "
        f"{tuning['held_out']} of {tuning['conversations']} conversations held out. IFEval on the "
        f"first {last['ifeval']['prompts']} prompts only, {last['ifeval']['instructions']} "
        f"instructions, answers of at most {settings['max_new_tokens']} tokens. ± is a standard "
        f"error.",
    ]
