"""The estimates of a plan, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.estimate.gpus import GPUS
from mmsrarec_ray.estimate.machine import GIB
from mmsrarec_ray.estimate.shapes import Shapes, shapes_of
from mmsrarec_ray.estimate.stages import ESTIMATED, Counts, Estimate, counts_of
from mmsrarec_ray.store import Manifest

_HEAD = ("stage", "GPUs", "GiB a GPU", "of", "fits", "tokens in", "out", "PFLOP", "hours", "GPU hours")


@dataclass(frozen=True)
class Estimates:
    """What each stage of a plan takes that asks or teaches the model, or why that is not known, by name."""

    config: Config
    shapes: Shapes | None
    counts: Counts
    stages: dict[str, Estimate | str]
    others: list[str]
    """Stages that do neither."""

    @classmethod
    def of(cls, config: Config, stages: Sequence[str], dataset: Manifest | None) -> Estimates:
        """stages: names of those that would run; dataset: the manifest of the run's dataset, None where there is none
        yet. Where no GPU is asked for, nothing is estimated."""
        counts = counts_of(config, dataset)
        names, others = ([name for name in stages if (_kind(name) in ESTIMATED) == ours] for ours in (True, False))
        if not (config.engine.gpus or config.train.gpu):
            return cls(config, None, counts, {}, others)
        try:
            if config.model.dtype == "float32":
                raise ConfigError("the peaks of GPUs that are known are of 16 bit, and model.dtype is float32")
            shapes = shapes_of(config.model)
        except ConfigError as error:
            return cls(config, None, counts, dict.fromkeys(names, str(error)), others)
        return cls(config, shapes, counts, _each(names, config, shapes, counts), others)

    def summary(self, stage: str) -> dict[str, Any]:
        """For the plan in the job's last line; empty where nothing is estimated."""
        found = self.stages.get(stage)
        if not isinstance(found, Estimate):
            return {}
        told = {
            "gpus": found.gpus,
            "gib_a_gpu": round(found.needed / GIB, 1),
            "gib_allowed": round(found.limit / GIB, 1),
            "fits": found.fits,
            "tokens_in": round(found.tokens_in),
            "tokens_out": round(found.tokens_out),
            "flops": found.flops,
            "hours": round(found.hours, 2) if found.fits else None,
        }
        return {"estimate": told}

    def text(self) -> str:
        """The table, what it is made of and what it assumes."""
        if not self.stages:
            return "Estimate: none, as no GPU is asked for or no stage that is left asks the model."
        known = {name: each for name, each in self.stages.items() if isinstance(each, Estimate)}
        rest = [f"  {name}: not estimated: {why}" for name, why in self.stages.items() if isinstance(why, str)]
        if self.others:
            rest.append(f"  not estimated, as they do not ask the model: {', '.join(self.others)}")
        if self.shapes is None or not known:
            return "\n".join(["Estimate:", *rest])
        details = [line for name, each in known.items() for line in _detail(name, each, self.config.plan.gpu)]
        return "\n".join([*self._head(self.shapes), *_table(known), *rest, *details, *self._assumed()])

    def _head(self, shapes: Shapes) -> list[str]:
        c, n = self.config, self.counts
        whence = "of the dataset" if n.known else "plan.items and plan.users, as the run has no dataset yet"
        return [
            "Estimate, not measured (docs/plan.md):",
            f"  {c.model.source}, {shapes.parameters / 1e9:.2f} billion parameters, {c.model.dtype}, on {c.plan.gpu}; "
            f"{n.items:,.0f} items, {n.users:,.0f} users ({whence})",
        ]

    def _assumed(self) -> list[str]:
        p, gpu = self.config.plan, GPUS[self.config.plan.gpu]
        share, peak = p.utilisation, gpu.flops / 1e12
        return [
            f"  Assumed of a GPU: prefill {share.prefill:.0%}, training {share.training:.0%} of {peak:,.0f} TFLOP/s; "
            f"decode {share.decode:.0%} of {gpu.bandwidth / 1e9:,.0f} GB/s; {share.links:.0%} of links of "
            f"{gpu.link / 1e9:,.0f} GB/s in a node of {p.gpus_per_node}, {p.network_gb_s:,.0f} GB/s between nodes.",
            f"  Assumed of the data: {p.text_chars:,} characters a text, {p.chars_per_token:g} a token, "
            f"{p.keyword_tokens:g} tokens a keyword, {p.template_tokens} of chat form and instruction; square pictures "
            f"of {self.counts.pictured:.0%} of the items. To be set: plan.*",
            "  Left out: starting engines, decoding pictures and writing prompts on CPUs, disks, padding, checkpoints, "
            "the summariser's evaluations.",
        ]


def _kind(stage: str) -> str:
    """The stage that a stage is estimated as: a blend as `score mmsrarec`, since both ask the same questions."""
    return stage.partition("+")[0]


def _each(names: Sequence[str], config: Config, shapes: Shapes, counts: Counts) -> dict[str, Estimate | str]:
    """What is asked alike is estimated once, at the first stage that asks it."""
    first = {_kind(name): name for name in reversed(names)}
    found: dict[str, Estimate | str] = {
        name: f"its questions are those of {first[_kind(name)]}, and asked once" for name in names
    }
    return found | {name: _estimate(name, config, shapes, counts) for name in first.values()}


def _estimate(name: str, config: Config, shapes: Shapes, counts: Counts) -> Estimate | str:
    try:
        return ESTIMATED[_kind(name)](config, shapes, counts)
    except ConfigError as error:
        return str(error)


def _table(known: dict[str, Estimate]) -> list[str]:
    fitting = [each for each in known.values() if each.fits]
    hours = sum(each.hours for each in fitting)
    gpu_hours = sum(each.hours * each.gpus for each in fitting)
    total = ("those that fit, in turn", *[""] * 7, f"{hours:.2f}", f"{gpu_hours:.1f}")
    rows = [_HEAD, *(_row(name, each) for name, each in known.items()), total]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  " + "  ".join(_padded(row, widths)).rstrip() for row in rows]


def _padded(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def _row(name: str, each: Estimate) -> tuple[str, ...]:
    memory = (f"{each.needed / GIB:.1f}", f"{each.limit / GIB:.1f}", "yes" if each.fits else "NO")
    work = (_short(each.tokens_in), _short(each.tokens_out), f"{each.flops / 1e15:,.0f}")
    time = (f"{each.hours:.2f}", f"{each.hours * each.gpus:.1f}") if each.fits else ("-", "-")
    return (name, str(each.gpus), *memory, *work, *time)


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def _detail(name: str, each: Estimate, gpu: str) -> list[str]:
    """Of what memory and hours are made, and what to do where a stage does not fit."""
    memory = ", ".join(f"{what} {size / GIB:.1f}" for what, size in each.memory.items())
    hours = ", ".join(f"{what} {seconds / 3600:.2f}" for what, seconds in each.seconds.items())
    lines = [f"  {name}: GiB: {memory}{f'; hours: {hours}' if each.fits else ''}; {each.note}"]
    if each.needed > each.limit:
        lines.append(
            f"  {name} DOES NOT FIT: it needs {each.needed / GIB:.1f} GiB a GPU and may take {each.limit / GIB:.1f} of "
            f"one {gpu}: {each.advice}."
        )
    if each.refused:
        lines.append(f"  {name} DOES NOT FIT: {each.refused}.")
    return lines
