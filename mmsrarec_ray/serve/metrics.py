"""What the service counts, through Ray: every node offers it to Prometheus, and `/metrics` gathers it."""

from __future__ import annotations

import http.client
import logging
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.serve import metrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_LAG_SECONDS = (1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
_OURS = ("ray_mmsrarec_", "ray_serve_", "ray_vllm_")
_PATIENCE_SECONDS = 3.0
_AT_A_TIME = 32  # nodes that are asked
_LOG = logging.getLogger("ray.serve")


class Metrics:
    """Of an ingress replica."""

    def __init__(self) -> None:
        # Ray's hint names one label and means any number
        degraded: Any = ("bundle", "degraded")
        outcome: Any = ("bundle", "outcome")
        seconds: dict[str, Any] = {"boundaries": list(_SECONDS), "tag_keys": ("bundle",)}
        share: dict[str, Any] = {"boundaries": list(_SHARES), "tag_keys": ("bundle",)}
        self._answers = metrics.Counter(
            "mmsrarec_recommendations", "Answers by whether the ranker gave them.", degraded
        )
        self._seconds = metrics.Histogram("mmsrarec_recommendation_seconds", "Time to an answer.", **seconds)
        self._retrieval = metrics.Histogram("mmsrarec_retrieval_seconds", "Of these, in the retriever.", **seconds)
        self._scored = metrics.Counter("mmsrarec_candidates_scored", "Candidates the ranker scored.", ("bundle",))
        self._asked = metrics.Counter("mmsrarec_recommendations_asked", "Wishes for recommendations, answered or not.")
        self._refused = metrics.Counter("mmsrarec_refused", "Requests that were refused or failed, by code.", ("code",))
        self._events = metrics.Counter("mmsrarec_events", "Events by whether they were new.", ("outcome",))
        self._lag = metrics.Histogram(
            "mmsrarec_event_lag_seconds", "From an event's own time to its arrival.", boundaries=list(_LAG_SECONDS)
        )
        self._items = metrics.Counter("mmsrarec_items_put", "Items put, by what became of them.", ("status",))
        self._shadow = metrics.Counter("mmsrarec_shadow", "Answers the shadow was told of, by outcome.", outcome)
        self._shadow_seconds = metrics.Histogram("mmsrarec_shadow_seconds", "Time to the shadow's scores.", **seconds)
        self._concordance = metrics.Histogram(
            "mmsrarec_shadow_concordance", "Share of the pairs of candidates in the same order.", **share
        )
        self._overlap = metrics.Histogram(
            "mmsrarec_shadow_overlap", "Share of the answer that the shadow would show too.", **share
        )

    def answered(self, bundle: str, seconds: float, scored: int, degraded: str | None) -> None:
        """bundle: the version that answered; degraded: why, None where it is not."""
        self._answers.inc(1, {"bundle": bundle, "degraded": degraded or "no"})
        self._seconds.observe(seconds, {"bundle": bundle})
        _add(self._scored, scored, {"bundle": bundle})

    def retrieved(self, bundle: str, seconds: float) -> None:
        """The retriever answered."""
        self._retrieval.observe(seconds, {"bundle": bundle})

    def asked(self) -> None:
        """Somebody wants recommendations, and not in a wrong way."""
        self._asked.inc(1)

    def refused(self, code: str) -> None:
        """code: of the error that is answered."""
        self._refused.inc(1, {"code": code})

    def events(self, accepted: int, repeated: int, lags: Iterable[float]) -> None:
        """lags: of those that came with a time of their own, seconds since then."""
        _add(self._events, accepted, {"outcome": "accepted"})
        _add(self._events, repeated, {"outcome": "repeated"})
        for seconds in lags:
            self._lag.observe(max(0.0, seconds))  # clocks differ

    def shadow(self, bundle: str, outcome: str) -> None:
        """bundle: the shadow's, as below; outcome: `compared`, or why it was not."""
        self._shadow.inc(1, {"bundle": bundle, "outcome": outcome})

    def shadow_compared(self, bundle: str, seconds: float, concordance: float, overlap: float) -> None:
        self._shadow_seconds.observe(seconds, {"bundle": bundle})
        self._concordance.observe(concordance, {"bundle": bundle})
        self._overlap.observe(overlap, {"bundle": bundle})

    def item(self, status: str) -> None:
        self._items.inc(1, {"status": status})


def _add(counter: metrics.Counter, count: int, tags: dict[str, str] | None = None) -> None:
    if count:  # Ray refuses to count nothing
        counter.inc(count, tags or {})


def gathered() -> str:
    """What all nodes of the cluster tell of the service, in Prometheus' text format; some seconds old."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(max(1, min(len(alive), _AT_A_TIME))) as asking:
        pages = list(asking.map(_page, (f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in alive)))
    return "".join(f"{line}\n" for line in _ours(line for page in pages for line in page.splitlines()))


def _page(place: str) -> str:
    """What one node tells; nothing where it does not answer: that is when the others are needed."""
    try:
        with urllib.request.urlopen(f"http://{place}/metrics", timeout=_PATIENCE_SECONDS) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        _LOG.warning("no metrics from the node at %s: %s", place, error)
        return ""


def _ours(lines: Iterable[str]) -> list[str]:
    """Lines of the service's metrics; of what is said about a metric, each once, and before its values."""
    kept: dict[str, list[str]] = {}
    for line in lines:
        words = line.split(maxsplit=3)
        said = words[:1] == ["#"] and len(words) > 2
        name = words[2] if said else line.partition("{")[0].partition(" ")[0]
        if not name.startswith(_OURS):
            continue
        family = next((name.removesuffix(end) for end in ("_bucket", "_sum", "_count") if name.endswith(end)), name)
        group = kept.setdefault(family if family in kept else name, [])
        if not said or line not in group:
            group.append(line)
    return [line for group in kept.values() for line in sorted(group, key=lambda line: not line.startswith("#"))]
