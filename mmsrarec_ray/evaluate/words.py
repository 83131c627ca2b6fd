"""The report in words: Markdown for people, a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = dict[str, Any]
Row = dict[str, Any]
_LISTS = {"coverage": "coverage", "novelty": "novelty, bits", "popularity": "popularity percentile"}


def table(report: Report) -> str:
    """The report for a terminal: plain text, at most 100 columns, oracles set apart."""
    names = _main_names(report)
    lines = ["method".ljust(24) + "".join(name.rjust(13) for name in names) + "fit s".rjust(11) + "score s".rjust(11)]
    rule = "-" * len(lines[0])
    for place, row in enumerate(report["rows"]):
        if place == 0 or (row["kind"] != "oracle" and report["rows"][place - 1]["kind"] == "oracle"):
            lines.append(rule)
        name = row["method"] if len(row["method"]) <= 23 else row["method"][:22] + "…"
        seconds = (_seconds(row[key]).rjust(11) for key in ("seconds_fit", "seconds_score"))
        lines.append(name.ljust(24) + "".join(_percent(row[metric]).rjust(13) for metric in names) + "".join(seconds))
    lines += [rule, f"Percent ± half of the 95 % interval, {report['cases']:,} cases."]
    if report["best_baseline"]:
        lines.append(f"Best baseline: {report['best_baseline']}")
    return "\n".join(lines)


def markdown(report: Report) -> str:
    """The report for people, in Markdown."""
    k, rows = report["main_k"], report["rows"]
    parts = [f"# Evaluation on {report['dataset']}: the {report['protocol']} protocol", _sentence(report)]
    parts += [_main_table(report), "![All methods with intervals](plots/methods.png)", _published_table(report)]
    # NDCG@1 is HR@1.
    others = [f"{name}@{other}" for other in report["ks"] if other != k for name in ("HR", "NDCG")[: min(other, 2)]]
    if others:
        body = [[_name(row), *(_percent(row[name]) for name in others)] for row in rows]
        parts += ["## Other lengths of the list", _table(["method", *others], body)]
    parts.append(_tests(report))
    for metric in (f"NDCG@{k}", f"HR@{k}") if slices_of(report) else ():
        heads = [f"{name} ({cases:,})" for name, cases in slices_of(report).items()]
        body = [[_name(row), *(_percent(one[metric]) for one in row["slices"].values())] for row in rows]
        parts += [f"## {metric} by slice (cases)", _table(["method", *heads], body)]
    if slices_of(report):
        parts.append("![NDCG by slice](plots/slices.png)")
    parts += [_lists_table(rows), _unknown_table(rows), _spread_table(report), _definitions(report)]
    settings = [
        f"- {row['method']}: " + ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        for row in rows
        if row["settings"]
    ]
    if settings:
        parts += ["## Settings of the methods", "\n".join(settings)]
    parts += ["## Repeat it", f"```sh\n{report['command']}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sentence(report: Report) -> str:
    negatives = report["negatives"]
    against = f"{negatives} sampled negatives each" if negatives else "the full ranking"
    words = (
        f"{report['cases']:,} test cases against {against}. Candidates: the {report['pool']}, of a catalogue of "
        f"{report['n_items']:,} items. Split of users: {report['split'].replace('_', ' ')}. "
        f"{'Seeds' if len(report['seeds']) > 1 else 'Seed'}: {', '.join(map(str, report['seeds']))}."
    )
    if report["repeats"]:
        words += f" Left out: {report['repeats']:,} whose positive stands in the history."
    statistics = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in report["statistics"].items()]
    return words + (f" The data: {', '.join(statistics)}." if statistics else "")


def _main_table(report: Report) -> str:
    names, rows = _main_names(report), report["rows"]
    rivals = [row for row in rows if row["kind"] != "oracle"]
    body = []
    for row in rows:
        leads = [row in rivals and all(row[name]["value"] >= one[name]["value"] for one in rivals) for name in names]
        cells = [
            f"**{_percent(row[name])}**" if lead else _percent(row[name])
            for name, lead in zip(names, leads, strict=True)
        ]
        body.append([_name(row), row["kind"], *cells, _seconds(row["seconds_fit"]), _seconds(row["seconds_score"])])
    note = "Percent ± half the width of the 95 % interval; bold: the best but the oracles."
    if len(rivals) < len(rows):
        note += " Oracles (in italics) know how the data was made: they bound what can be reached."
    return _table(["method", "kind", *names, "fit, s", "score, s"], body) + "\n\n" + note


def _published_table(report: Report) -> str:
    if not report["published"]:
        return ""
    names = ("HR@5", "NDCG@5", "AUC")
    body = [[row["method"], *(f"{row[name] * 100:.2f}" for name in names)] for row in report["published"]]
    return (
        "## Published figures: not measured by us\n\n"
        "From arXiv 2512.20916, in percent, on MicroLens with 20 negatives. "
        "The paper names neither the items its negatives are drawn from nor intervals. The pool alone moves these "
        "figures by several points, so they are no match for the rows above.\n\n" + _table(["method", *names], body)
    )


def _tests(report: Report) -> str:
    tested = [row for row in report["rows"] if "against_best_baseline" in row]
    if not tested:
        return ""
    names = [f"NDCG@{report['main_k']}", f"HR@{report['main_k']}", "AUC"]
    body = []
    for row in tested:
        cells = []
        for one in (row["against_best_baseline"][name] for name in names):
            low, difference, high = (f"{one[key] * 100:+.1f}" for key in ("low", "difference", "high"))
            cells += [f"{difference} [{low}, {high}]", "< 0.001" if one["p"] < 0.001 else f"{one['p']:.3f}"]
        body.append([_name(row), *cells])
    heads = [head for name in names for head in (name, "p")]
    return (
        f"## Against the best baseline, {report['best_baseline']}\n\nDifference in percentage points [95 % interval] "
        "on the same users, and the two-sided p of a paired randomisation test, not corrected for the number of "
        "methods.\n\n" + _table(["method", *heads], body)
    )


def _lists_table(rows: list[Row]) -> str:
    kinds = [kind for kind in _LISTS if any(kind in row for row in rows)]
    if not kinds:
        return ""
    body = [[_name(row), *(_number(row[kind]) if kind in row else "" for kind in kinds)] for row in rows]
    return "## What is recommended\n\n" + _table(["method", *(_LISTS[kind] for kind in kinds)], body)


def _unknown_table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["unknown"]))
    if not names:
        return ""
    body = [[_name(row), *(_number(row["unknown"].get(name, "")) for name in names)] for row in rows]
    heads = [name.replace("_", " ") for name in names]
    return "## Items without training interactions\n\n" + _table(["method", *heads], body)


def _spread_table(report: Report) -> str:
    names = [name for name in _main_names(report) if any("std_over_seeds" in row[name] for row in report["rows"])]
    if not names:
        return ""
    spreads = [[row[name].get("std_over_seeds", 0.0) for name in names] for row in report["rows"]]
    body = [
        [_name(row), *(f"{one * 100:.2f}" for one in each)] for row, each in zip(report["rows"], spreads, strict=True)
    ]
    return "## Standard deviation over the seeds, in points\n\n" + _table(["method", *names], body)


def _definitions(report: Report) -> str:
    return (
        "## How the figures are defined\n\n"
        "Each case has one positive. HR@k: it is among the first k (Recall@k is the same). NDCG@k: "
        "1 / log2(1 + rank) within the first k, else 0. MRR: 1 / rank in the whole list. AUC: the share of the other "
        "candidates that score lower. Ties are averaged exactly, over all orders of equal scores. A case is a user, "
        "with the mean over the seeds. Intervals are the percentile bootstrap over users "
        f"({report['intervals']['resamples']:,} resamples, the same ones for all methods and metrics); they hold the "
        "chance of which users were tested, not that of another training. Coverage: the share of the pool that is "
        "recommended to anyone. Novelty: mean -log2 of an item's share of the training interactions. Popularity "
        "percentile: 0.5 is like drawing from the pool, 1 only the most popular. Seconds are means over the seeds."
    )


def _main_names(report: Report) -> list[str]:
    return [f"HR@{report['main_k']}", f"NDCG@{report['main_k']}", "AUC", "MRR"]


def slices_of(report: Report) -> dict[str, int]:
    """Slice -> its cases."""
    return {name: one["cases"] for name, one in report["rows"][0]["slices"].items()}


def _name(row: Row) -> str:
    return f"*{row['method']}*" if row["kind"] == "oracle" else row["method"]


def _percent(measured: Mapping[str, float]) -> str:
    return f"{measured['value'] * 100:.1f} ± {(measured['high'] - measured['low']) * 50:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 100 else f"{seconds:,.0f}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table: names to the left, figures to the right."""
    lines = [heads, [":--" if head in ("method", "kind") else "--:" for head in heads], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
