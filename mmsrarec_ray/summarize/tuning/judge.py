"""Are tuned summaries better? The untuned and the tuned model answer the same items that neither has seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.shop.generate import item_id, shop_of
from mmsrarec_ray.data.shop.truth import item_keywords
from mmsrarec_ray.intervals import interval, paired
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.tuning.answers import Judged
from mmsrarec_ray.summarize.tuning.examples import Examples
from mmsrarec_ray.summarize.tuning.rewards import Said, read, weighted
from mmsrarec_ray.summarize.tuning.terms import weights_of

REPORT, LENGTH = "report", "answer_tokens"
_RESAMPLES, _SHOWN = 2_000, 10


def compare(config: Config, examples: Examples, before: Judged, after: Judged) -> dict[str, Any]:
    """Means before and after with 95 % intervals over items, and the difference of the pairs; on the shop, the true
    attributes that were said."""
    weights, sides = weights_of(config), {"before": before, "after": after}
    values = {
        side: {"reward": weighted(each.terms, weights), LENGTH: each.tokens, **each.terms}
        for side, each in sides.items()
    }
    report: dict[str, Any] = {
        "items": len(examples),
        "measures": {
            name: _compared(np.array(values["before"][name], float), np.array(values["after"][name], float))
            for name in values["before"]
        },
        "keywords": {side: _keywords(each) for side, each in sides.items()},
        "answers": [
            {"item_id": examples[n].item_id, "title": examples[n].title, "before": first, "after": second}
            for n, (first, second) in enumerate(zip(before.answers, after.answers, strict=True))
        ][:_SHOWN],
    }
    if config.data.format == "shop":
        report["attributes"] = attributes(config, [examples[n].item_id for n in range(len(examples))], before, after)
    return report


def _compared(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    test = paired(after[:, None], before[:, None], _RESAMPLES, 0)
    return {
        "before": _mean(before),
        "after": _mean(after),
        "difference": {"value": float(test.difference[0]), "low": float(test.low[0]), "high": float(test.high[0])},
        "p": float(test.p[0]),
    }


def _mean(values: np.ndarray) -> dict[str, float]:
    low, high = interval(values[:, None], _RESAMPLES, 0)
    return {"value": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


def _keywords(judged: Judged) -> dict[str, float]:
    """How many keywords an item, how many different ones in all, and the share of items whose keywords nobody else
    has."""
    said = [said.all for said in read(judged.answers)]
    lines = [tuple(sorted(set(words))) for words in said]
    return {
        "per_item": float(np.mean([len(words) for words in said])),
        "distinct": len({word for words in said for word in words}),
        "unique_lines": float(np.mean([lines.count(line) == 1 for line in lines])),
    }


def attributes(config: Config, ids: Sequence[str], before: Judged, after: Judged) -> dict[str, Any]:
    """Recall of the shop's true attributes, those that only the picture shows (colour, pattern, and the kind where no
    text names it) and those that the text says apart, and precision of all keywords.

    `before, cut` holds the untuned answers cut down, keyword by keyword from the end, to the tokens of the tuned answer
    to the same item, so that both are compared at equal cost.
    """
    shop = shop_of(config.shop.seed, config.shop.items)
    numbers = {item_id(number): number for number in range(len(shop))}
    truths = [item_keywords(shop, numbers[each]) for each in ids]
    rows = {
        "before": read(before.answers),
        "before, cut": [
            _cut(said, (had, may))
            for said, had, may in zip(read(before.answers), before.tokens, after.tokens, strict=True)
        ],
        "after": read(after.answers),
    }
    return {name: _right(said, truths) for name, said in rows.items()}


def _right(said: Sequence[Said], truths: Sequence[Any]) -> dict[str, dict[str, float]]:
    picture = [
        [word in each.all for word in truth.image if word not in truth.text]
        for each, truth in zip(said, truths, strict=True)
    ]
    text = [[word in each.all for word in truth.text] for each, truth in zip(said, truths, strict=True)]
    named = [
        [word in truth.image + truth.text for word in dict.fromkeys(each.all)] or [False]
        for each, truth in zip(said, truths, strict=True)
    ]
    shares = {"picture recall": picture, "text recall": text, "precision": named}
    both = [first + second for first, second in zip(picture, text, strict=True)]
    return {name: _mean(np.array([np.mean(row) for row in rows])) for name, rows in (shares | {"recall": both}).items()}


def _cut(said: Said, tokens: tuple[int, int]) -> Said:
    """So many keywords from the front as the share of tokens allows. tokens: those there are, those there may be."""
    had, may = tokens
    keep = len(said.all) if may >= had else int(len(said.all) * may / had)
    return Said(said.image[:keep], said.text[: max(0, keep - len(said.image))])


def write_report(report: dict[str, Any], out: Folder) -> None:
    """`report.json` and, for people, `report.md`."""
    out.write_bytes(f"{REPORT}.json", json.dumps(report, indent=2, ensure_ascii=False).encode())
    out.write_bytes(f"{REPORT}.md", markdown(report).encode())


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    lines = [f"# Summaries before and after tuning, {report['items']} test items", ""]
    lines += ["| | before | after | difference | p |", "|---|---|---|---|---|"]
    for name, row in report["measures"].items():
        before, after, gap = (_shown(row[side]) for side in ("before", "after", "difference"))
        lines.append(f"| {name} | {before} | {after} | {gap} | {row['p']:.4f} |")
    lines += ["", "| | keywords an item | different keywords | items with keywords of their own |", "|---|---|---|---|"]
    for name, row in report["keywords"].items():
        lines.append(f"| {name} | {row['per_item']:.2f} | {row['distinct']} | {row['unique_lines']:.1%} |")
    if "attributes" in report:
        names = list(next(iter(report["attributes"].values())))
        lines += ["", f"| true attributes | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, row in report["attributes"].items():
            lines.append(f"| {name} | {' | '.join(_shown(row[each]) for each in names)} |")
    lines += ["", "| item | before | after |", "|---|---|---|"]
    for row in report["answers"]:
        cells = [row["title"] or row["item_id"], row["before"], row["after"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _shown(row: dict[str, float]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
