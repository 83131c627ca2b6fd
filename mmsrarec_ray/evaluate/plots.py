"""The report in pictures."""

from __future__ import annotations

import io
from typing import Any

from mmsrarec_ray.evaluate.words import Report, Row, slices_of

# Okabe and Ito's colours, told apart by all; the markers say the same without colour.
_LOOKS = {"oracle": ("#000000", "s", "white"), "baseline": ("#0072B2", "o", None), "ours": ("#D55E00", "D", None)}


def plot_methods(report: Report) -> bytes:
    """NDCG, HR and AUC of all methods with their intervals, oracles set apart: a PNG."""
    rows, k = report["rows"], report["main_k"]
    figure = _figure(11, 1.4 + 0.3 * len(rows))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, name in zip(panels, (f"NDCG@{k}", f"HR@{k}", "AUC"), strict=True):
        _dots(axes, rows, [row[name] for row in rows])
        axes.set_title(f"{name}, %", fontsize=11, loc="left")
        axes.margins(x=0.14)
    _legend(figure, rows)
    return _png(figure)


def plot_slices(report: Report) -> bytes:
    """NDCG of all methods by slice, on one scale, with a tick where the method stands over all cases: a PNG."""
    rows, name, slices = report["rows"], f"NDCG@{report['main_k']}", slices_of(report)
    columns = min(4, len(slices))
    lines = -(-len(slices) // columns)
    figure = _figure(1.8 + 2.6 * columns, 0.8 + (0.8 + 0.24 * len(rows)) * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (slice_name, cases) in zip(panels, slices.items(), strict=False):
        _dots(axes, rows, [row["slices"][slice_name][name] for row in rows], labels=False)
        everywhere = [row[name]["value"] * 100 for row in rows]
        axes.plot(everywhere, _places(rows), "|", color="#777777", markersize=9, zorder=1)
        axes.set_title(f"{slice_name} ({cases:,})", fontsize=10, loc="left")
    for axes in panels[len(slices) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(slices) - columns) : len(slices)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
    figure.suptitle(f"{name} by slice (cases), %; grey tick: all cases", fontsize=11, x=0.01, ha="left")
    _legend(figure, rows)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # slow to import, and most of what imports this module draws nothing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12))


def _dots(axes: Any, rows: list[Row], measured: list[dict[str, float]], labels: bool = True) -> None:
    """One panel: a method a line, a dot with its interval, its value beside it."""
    places = _places(rows)
    for row, one, place in zip(rows, measured, places, strict=True):
        colour, marker, face = _LOOKS[row["kind"]]
        low, value, high = (one[key] * 100 for key in ("low", "value", "high"))
        axes.hlines(place, low, high, color=colour, linewidth=1.6, zorder=2)
        axes.plot(value, place, marker, color=colour, markerfacecolor=face or colour, markersize=5.5, zorder=3)
        if labels:
            axes.annotate(f"{value:.1f}", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    oracles = sum(row["kind"] == "oracle" for row in rows)
    if 0 < oracles < len(rows):
        axes.axhline((places[oracles - 1] + places[oracles]) / 2, color="#bbbbbb", linewidth=0.8)
    axes.set_yticks(places, [row["method"] for row in rows], fontsize=9)
    axes.set_ylim(places[-1] + 0.7, places[0] - 0.7)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _places(rows: list[Row]) -> list[float]:
    """Where the methods stand from top to bottom, with a gap under the oracles."""
    return [place + (0.0 if row["kind"] == "oracle" else 0.5) for place, row in enumerate(rows)]


def _legend(figure: Any, rows: list[Row]) -> None:
    from matplotlib.lines import Line2D

    kinds = [kind for kind in _LOOKS if any(row["kind"] == kind for row in rows)]
    handles = [
        Line2D([], [], color=colour, marker=marker, markerfacecolor=face or colour, markersize=5.5, label=kind)
        for kind, (colour, marker, face) in ((kind, _LOOKS[kind]) for kind in kinds)
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False, fontsize=9)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()
