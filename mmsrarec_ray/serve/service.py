"""What the ingress does for each request: the store, then the retriever, then the ranker, within a deadline."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from starlette.background import BackgroundTasks

from mmsrarec_ray.serve.finder import Candidate, Found, Wish
from mmsrarec_ray.serve.lanes import LEAST_SECONDS, Lane, in_share, reason_of, within
from mmsrarec_ray.serve.look import ItemView
from mmsrarec_ray.serve.metrics import Metrics
from mmsrarec_ray.serve.refusal import Refused
from mmsrarec_ray.serve.room import Room, busy
from mmsrarec_ray.serve.schemas import (
    CompanionOut,
    EventIn,
    EventsAnswer,
    HistoryItem,
    ItemOut,
    ItemsPage,
    RecommendationRequest,
    Recommendations,
    Recommended,
    UserDeleted,
    UserOut,
    UsersPage,
    WhyOut,
)
from mmsrarec_ray.serve.shadow import Answered, Shadow
from mmsrarec_ray.serve.store import CALL_SECONDS, Event, Item, Store, StoreUnavailable
from mmsrarec_ray.settings import Serve

_P = ParamSpec("_P")
_T = TypeVar("_T")
_STORE_THREADS = 8  # as many as PostgreSQL gives a process connections: further calls would wait for one
_PROBE_SECONDS = 2.0
_LAST_SECONDS = 0.25  # at least, for the store's word on what was deleted meanwhile
_PATIENCE_SECONDS = 10.0  # for what has no deadline of its own


class Service:
    """Holds the store and the handles of the other deployments."""

    def __init__(
        self,
        settings: Serve,
        main: Lane,
        trial: Lane | None,
        shadow: Lane | None,
        store: Store,
        summariser: Any,
        metrics: Metrics,
    ):
        """main: what answers; trial: what answers a share of the users; shadow: what scores the answers of main again;
        summariser: a handle of Ray Serve."""
        self.settings, self.main, self.trial, self.store, self.metrics = settings, main, trial, store, metrics
        self.shadow = Shadow(settings, shadow, metrics) if shadow else None
        self._summariser = summariser
        self.requests = Room(settings.max_in_flight, settings.retry_after_s)
        self.thumbnails = Room(settings.max_thumbnails, settings.retry_after_s)
        self._waiting = 0
        # The event loop's own, five where Ray Serve gives an ingress a part of a CPU, are anybody's: whoever held them
        # would make the store look dead.
        self._threads = ThreadPoolExecutor(_STORE_THREADS, "store")

    async def recommend(self, request: RecommendationRequest, after: BackgroundTasks) -> Recommendations:
        """The store and the retriever, without which there is no answer, have the service's deadline, the ranker the
        request's own. The store is asked at the end once more, for a moment beyond the deadline at most. after: what is
        done when the answer has been sent.

        Raises Refused where the retriever is late, down or busy, StoreUnavailable where the store is."""
        began = time.monotonic()
        most, given = self.settings.deadline_ms, request.deadline_ms or self.settings.deadline_ms
        until, deadline = (began + each / 1000 for each in (most, min(given, most)))
        later, position = await self._stored(until - began, self._known, request)
        count = max(request.k, self.settings.candidates)
        wish = Wish(request.user_id, later, request.candidates, count, request.exclude, request.keywords)
        asked = time.monotonic()
        lane, found = await self._found(self._lane(request), wish, position, until)
        self.metrics.retrieved(found.bundle, time.monotonic() - asked)
        scores, reason, session = None, None, _session(request)
        if request.ranked and found.candidates:
            scores, reason = await lane.scores(found, session, position, deadline)
        items = await self._best(found.candidates, scores, request.k, until)
        if self.shadow and scores and lane is self.main and self.shadow.follows(_who(request)):
            after.add_task(self.shadow.follow, Answered.of(wish, found, scores, items, session, position))
        took = time.monotonic() - began
        self.metrics.answered(found.bundle, took, len(found.candidates) if scores else 0, reason)
        return Recommendations(
            request_id=uuid.uuid4().hex,
            bundle=found.bundle,
            ranked=scores is not None,
            degraded=reason is not None,
            degraded_reason=reason,
            known_user=found.known_user,
            history=found.history,
            unknown=found.unknown,
            took_ms=round(took * 1000, 2),
            items=items,
        )

    async def _stored(self, seconds: float, call: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """What a call of the store returns. Raises StoreUnavailable, also where it is late: a call that has begun goes
        on to its end."""
        asked = partial(call, *arguments, **named)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, asked)
        except TimeoutError:
            raise StoreUnavailable(f"the store does not answer within {seconds:g} s") from None

    async def _found(self, lane: Lane, wish: Wish, position: int, until: float) -> tuple[Lane, Found]:
        """What retrieval finds, and who did: where a trial does not in half of the time, main does. Serve takes a trial
        away before it replaces the ingress that asks it."""
        if lane is not self.main:
            half = max(LEAST_SECONDS, (until - time.monotonic()) / 2)
            try:
                return lane, await within(lane.retriever.find.remote(wish, position), half)
            except Exception as error:
                reason_of(error, "trial's retriever")
        return self.main, await self._asked(self.main.retriever.find, wish, position, until=until)

    def _known(self, request: RecommendationRequest) -> tuple[list[str], int]:
        """The history that the store or the request tells, and the store's place."""
        position = self.store.position()
        if request.user_id is None:
            return request.history or [], position
        return self._history(request.user_id), position

    def _history(self, user_id: str) -> list[str]:
        return [item for item, _ in self.store.history(user_id, self.settings.limits.history)]

    async def _asked(self, method: Any, *arguments: Any, until: float | None = None) -> Any:
        """What a deployment answers. Raises Refused (503, 429) where it cannot, in time."""
        from ray.serve.exceptions import BackPressureError

        seconds = _PATIENCE_SECONDS if until is None else max(LEAST_SECONDS, until - time.monotonic())
        try:
            return await within(method.remote(*arguments), seconds)
        except BackPressureError:
            raise busy(self.settings.retry_after_s) from None
        except StoreUnavailable:  # its own, which could not read on
            raise
        except Exception as error:
            reason_of(error, "retriever")
            headers = {"Retry-After": str(self.settings.retry_after_s)}
            raise Refused(503, "unavailable", "the retriever does not answer in time.", headers) from None

    def _lane(self, request: RecommendationRequest) -> Lane:
        return self.trial if self.trial and in_share("trial", _who(request), self.settings.trial.share) else self.main

    async def _best(
        self, candidates: list[Candidate], scores: list[float] | None, k: int, until: float
    ) -> list[Recommended]:
        """The k best, without what was deleted while they were worked out."""
        own = scores if scores is not None else [each.score for each in candidates]
        order = sorted(range(len(candidates)), key=lambda place: -own[place])  # ties stay in the order of retrieval
        left = max(_LAST_SECONDS, until - time.monotonic())
        hidden = await self._stored(left, self.store.hidden, [each.item_id for each in candidates])
        kept = [place for place in order if candidates[place].item_id not in hidden][:k]
        return [_recommended(candidates[place], own[place], rank) for rank, place in enumerate(kept, 1)]

    async def add_events(self, events: Sequence[EventIn]) -> EventsAnswer:
        """They are on the disk when this returns."""
        now = int(time.time() * 1000)
        rows = [Event(**each.model_dump() | {"timestamp": _time(each, now)}) for each in events]
        accepted = await self._stored(CALL_SECONDS, self.store.add_events, rows)
        lags = ((now - each.timestamp) / 1000 for each in events if each.timestamp is not None)
        self.metrics.events(accepted, len(rows) - accepted, lags)
        return EventsAnswer(accepted=accepted, repeated=len(rows) - accepted)

    async def user(self, user_id: str) -> UserOut:
        """An unknown user has an empty history."""
        later = await self._stored(CALL_SECONDS, self._history, user_id)
        position = await self._stored(CALL_SECONDS, self.store.position)
        view = await self._asked(self.main.retriever.user, user_id, later, position)
        history = [HistoryItem(item_id=i.item_id, title=i.title, keywords=list(i.keywords)) for i in view.history]
        return UserOut(user_id=user_id, known_user=view.known, history=history)

    async def users(self, start: str, limit: int) -> UsersPage:
        position = await self._stored(CALL_SECONDS, self.store.position)
        return UsersPage(users=await self._asked(self.main.retriever.users, start, limit, position))

    async def delete_user(self, user_id: str) -> UserDeleted:
        return UserDeleted(user_id=user_id, events=await self._stored(CALL_SECONDS, self.store.delete_user, user_id))

    async def put_item(self, item_id: str, title: str | None, text: str | None, image: bytes | None) -> None:
        """Durable when this returns."""
        await self._stored(CALL_SECONDS, self.store.put_item, item_id, title, text, image)

    async def summarised(self, item_id: str) -> Item:
        """An item that was put: with keywords if they come in time, and fewer wait for theirs than may."""
        if self._waiting < self.settings.max_waiting:
            self._waiting += 1
            try:
                await within(self._summariser.summarise.remote(item_id), self.settings.summary_wait_ms / 1000)
            except Exception as error:  # it goes on waiting: the summariser finds it by itself
                reason_of(error, "summariser")
            finally:
                self._waiting -= 1
        item = await self._stored_item(item_id)
        assert item is not None
        self.metrics.item(item.status)
        return item

    async def item(self, item_id: str) -> ItemOut:
        """Raises Refused (404)."""
        stored = await self._stored_item(item_id)
        if stored is not None and stored.status == "deleted":
            raise not_found("item", item_id)
        if stored is not None and stored.status != "ready":
            return stored_item(stored)
        # What recommends it knows best what it says of it: a bundle made since then has keywords of its own.
        view = await self._viewed(item_id)
        if view is not None:
            return _item(view)
        if stored is not None:  # changed since it was read here
            return stored_item(stored)
        raise not_found("item", item_id)

    async def _viewed(self, item_id: str) -> ItemView | None:
        """As the bundle sees it, or else the trial's: its items are recommended too."""
        position = await self._stored(CALL_SECONDS, self.store.position)
        view: ItemView | None = await self._asked(self.main.retriever.item, item_id, position)
        if view is not None or self.trial is None:
            return view
        try:
            return await within(self.trial.retriever.item.remote(item_id, position), _PROBE_SECONDS)
        except Exception as error:  # Serve takes a trial away before it replaces the ingress that asks it
            reason_of(error, "trial's retriever")
            return None

    async def version(self, item_id: str) -> int | None:
        """Of an item that was put here, None of all others. Raises Refused (404) of a deleted one."""
        stored = await self._stored_item(item_id)
        if stored is not None and stored.status == "deleted":
            raise not_found("item", item_id)
        return stored.version if stored else None

    async def _stored_item(self, item_id: str) -> Item | None:
        """Without its picture. None of one that was never put or deleted here."""
        return (await self._stored(CALL_SECONDS, self.store.items, [item_id], pictures=False)).get(item_id)

    async def items(self, query: str, offset: int, limit: int) -> ItemsPage:
        position = await self._stored(CALL_SECONDS, self.store.position)
        views, total = await self._asked(self.main.retriever.items, query, offset, limit, position)
        return ItemsPage(items=[_item(view) for view in views], total=total)

    async def delete_item(self, item_id: str) -> None:
        await self._stored(CALL_SECONDS, self.store.delete_item, item_id)

    async def ready(self) -> dict[str, bool]:
        """Which parts answer. Without the ranker the service still does, degraded."""
        checks: dict[str, Callable[[], Awaitable[Any]]] = {
            "store": lambda: self._stored(_PROBE_SECONDS, self.store.check),
            "retriever": lambda: within(self.main.retriever.ready.remote(), _PROBE_SECONDS),
            "ranker": lambda: within(self.main.ranker.ready.remote(), _PROBE_SECONDS),
        }
        outcomes = await asyncio.gather(*(check() for check in checks.values()), return_exceptions=True)
        return {name: not isinstance(each, BaseException) for name, each in zip(checks, outcomes, strict=True)}


def _who(request: RecommendationRequest) -> str:
    """Who has no id is told by the first item of the history: it stays when the history grows."""
    return request.user_id if request.user_id is not None else (request.history or [""])[0]


def _session(request: RecommendationRequest) -> str:
    return request.user_id if request.user_id is not None else "\n".join(request.history or ())


def _time(event: EventIn, now: int) -> int:
    """Not later than now: what a clock that is ahead dates after a deletion would outlive it."""
    return now if event.timestamp is None else min(event.timestamp, now)


def not_found(what: str, which: str) -> Refused:
    return Refused(404, "not_found", f"there is no {what} {which!r}.")


def _recommended(candidate: Candidate, score: float, rank: int) -> Recommended:
    why = candidate.why
    return Recommended(
        item_id=candidate.item_id,
        title=candidate.title,
        keywords=list(candidate.keywords),
        rank=rank,
        score=score,
        source=candidate.source,
        why=WhyOut(
            keywords=list(why.keywords),
            liked=list(why.liked),
            similar_users=why.similar_users,
            of=why.of,
            history=[CompanionOut(item_id=c.item_id, title=c.title, count=c.count) for c in why.history],
        ),
    )


def stored_item(item: Item) -> ItemOut:
    """An item of the store as it is answered."""
    return ItemOut(
        item_id=item.item_id,
        title=item.title or "",
        text=item.text or "",
        keywords=list(dict.fromkeys([*item.image_keywords, *item.text_keywords])),
        status=item.status,
        error=item.error,
    )


def _item(view: ItemView) -> ItemOut:
    return ItemOut(
        item_id=view.item_id,
        title=view.title,
        text=view.text,
        keywords=list(view.keywords),
        status="ready",
        error=None,
    )
