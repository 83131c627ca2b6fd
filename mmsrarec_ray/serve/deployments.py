"""The deployments behind the ingress: retriever, ranker, summariser. Each opens what it needs of the bundle."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Literal

from ray.serve.handle import DeploymentHandle

from mmsrarec_ray.errors import InputError, UsageError
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.serve.catalogue import LiveCatalogue
from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.engine import Engine
from mmsrarec_ray.serve.feed import Feed
from mmsrarec_ray.serve.finder import Finder, Found, Wish
from mmsrarec_ray.serve.lanes import reason_of, within
from mmsrarec_ray.serve.look import ItemView, Looker, UserView
from mmsrarec_ray.serve.store import Item, StoreUnavailable, open_store

_LOG = logging.getLogger("ray.serve")
_EVERY_SECONDS = 2.0  # how often the summariser looks for items that were put and not told of
_ANSWER_SECONDS = 5.0  # in which a ranker that is there says of which bundle it is
_TURN_SECONDS, _TOLD_TURNS = 1.0, 30  # how often it is asked, and after how many times that is logged


class RetrieverReplica:
    """Finds candidates and evidence, and answers what is known of items and users."""

    def __init__(self, bundle: Bundle, store: str):
        self._finder = Finder.load(bundle)
        self._looker = Looker(self._finder)
        learn = self._finder.contents, self._finder.item_changed, self._finder.user_deleted
        self._feed = Feed(open_store(store), *learn, pictures=False)
        self._feed.begin()

    async def find(self, wish: Wish, position: int) -> Found:
        """position: of the store's last change that the answer must know of; as below."""
        await self._feed.catch_up(position)
        return self._finder.find(wish)

    async def user(self, user_id: str, later: list[str], position: int) -> UserView:
        await self._feed.catch_up(position)
        return self._looker.user(user_id, later)

    async def users(self, start: str, limit: int, position: int) -> list[str]:
        await self._feed.catch_up(position)
        return self._finder.people.some(start, limit)

    async def item(self, item_id: str, position: int) -> ItemView | None:
        await self._feed.catch_up(position)
        return self._looker.item(item_id)

    async def items(self, query: str, offset: int, limit: int, position: int) -> tuple[list[ItemView], int]:
        await self._feed.catch_up(position)
        return self._looker.items(query, offset, limit)

    async def ready(self) -> bool:
        return True


class WaitingRetriever(RetrieverReplica):
    """One that answers no sooner than a ranker of its bundle does, as long as there is one of another: so those of the
    bundle before go on answering together. An engine takes minutes to load, a retriever seconds."""

    async def __init__(self, bundle: Bundle, store: str, ranker: DeploymentHandle):  # type: ignore[misc]  # Serve awaits
        super().__init__(bundle, store)
        await in_step(ranker, bundle.version)


class RankerReplica:
    """Scores candidates; writes keywords of new items with the same engine."""

    async def __init__(self, bundle: Bundle, store: str):  # type: ignore[misc]  # Ray Serve awaits it
        dataset, keywords = bundle.folder("dataset"), bundle.folder("keywords")
        self._version = bundle.version
        rank = bundle.config.rank
        self._catalogue = LiveCatalogue(Catalogue.read(dataset, keywords, rank.candidate, rank.said), rank.said)
        pictures = "image" in self._catalogue.base.shown.column_names
        contents = Contents.read(dataset)
        self._feed = Feed(open_store(store), contents, self._learn, lambda user_id, moment: None, pictures)
        self._feed.begin()
        self._engine = Engine(bundle, self._catalogue)
        await self._engine.score([], [], [], [0], [""])  # the first question compiles what the later ones use

    async def score(
        self,
        bundle: str,
        history: Sequence[str],
        neighbours: Sequence[str],
        liked: Sequence[str],
        candidates: Sequence[str],
        evidence: Sequence[str],
        position: int,
    ) -> list[float] | Literal["changing", "unfit"]:
        """p(yes) of each candidate. History, neighbours and candidates hold item ids that the retriever knew at that
        position; liked: what users of the same segments like; evidence: what is said of each candidate.

        bundle: the retriever's; `changing` where it is not this one's, while one takes the place of another, and where
        the retriever has learnt of an item since; `unfit` where a question does not fit the model.
        """
        if bundle != self._version:
            return "changing"
        await self._feed.catch_up(position)
        try:
            asked, near, offered = ([self._number(id) for id in items] for items in (history, neighbours, candidates))
        except KeyError:
            return "changing"
        try:
            return await self._engine.score(asked, near, liked, offered, evidence)
        except InputError:  # its own fault, and no reason to leave the ranker out for others
            return "unfit"

    async def summarise(self, item: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Keywords of the picture and of the text. Raises as `Engine.summarise`."""
        found = await self._engine.summarise(item)
        return list(found.image), list(found.text)

    async def ready(self) -> bool:
        return True

    async def bundle(self) -> str:
        """The version that it scores with."""
        return self._version

    async def check_health(self) -> None:
        await self._engine.check_health()

    def _learn(self, item: Item, own: bool) -> None:
        self._catalogue.learn(item, own)

    def _number(self, item_id: str) -> int:
        number = self._catalogue.number(item_id)
        if number is None:
            raise KeyError(item_id)
        return number


class SummariserReplica:
    """Gives items that were put their keywords: at once when told, and now and then those that nobody told of, because
    the process that took them died."""

    async def __init__(self, store: str, ranker: DeploymentHandle):  # type: ignore[misc]  # as above
        self._store, self._ranker = open_store(store), ranker
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.create_task(self._sweep())

    async def summarise(self, item_id: str) -> None:
        """Returns when the item is ready or has failed."""
        task = self._busy.get(item_id)
        if task is None:
            task = self._busy[item_id] = asyncio.create_task(self._summarise(item_id))
            task.add_done_callback(lambda _: self._busy.pop(item_id, None))
        await asyncio.shield(task)  # who waits may go; the work goes on

    async def check_health(self) -> None:
        if self._loop.done():
            raise RuntimeError("the summariser no longer looks for new items")

    async def _sweep(self) -> None:
        while True:
            try:
                waiting = await asyncio.to_thread(self._store.waiting)
            except StoreUnavailable as error:
                _LOG.warning("new items wait: %s", error)
                waiting = []
            for item_id in waiting:
                try:
                    await self.summarise(item_id)
                except Exception:  # whatever it was, say the ranker is down: the item goes on waiting
                    _LOG.warning("item %s could not be summarised, and will be tried again", item_id, exc_info=True)
            await asyncio.sleep(_EVERY_SECONDS)

    async def _summarise(self, item_id: str) -> None:
        """Until it waits no longer: it may be changed while its keywords are written."""
        while True:
            item = (await asyncio.to_thread(self._store.items, [item_id])).get(item_id)
            if item is None or item.status != "waiting":
                return
            await self._write(item)

    async def _write(self, item: Item) -> None:
        row = {"title": item.title, "text": item.text, "image": item.image, "image_uri": None}
        try:
            image, text = await self._ranker.summarise.remote(row)
        except (ValueError, OSError, UsageError) as error:  # the item's own fault: it will not get better
            reason = f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
            await asyncio.to_thread(self._store.set_failed, item.item_id, item.version, reason)
            return
        await asyncio.to_thread(self._store.set_keywords, item.item_id, item.version, image, text)


async def in_step(ranker: DeploymentHandle, version: str) -> None:
    """Returns when a ranker of this bundle answers, or when none answers: there is none yet, or none any more, and
    whoever waited for it would leave users without an answer."""
    for turn in itertools.count():
        try:
            there = await within(ranker.bundle.remote(), _ANSWER_SECONDS)
        except Exception as error:
            if reason_of(error, "ranker") != "busy":
                return
        else:
            if there == version:
                return
        if turn % _TOLD_TURNS == 0:
            _LOG.info("waiting for a ranker of bundle %s; until then the bundle before it answers", version)
        await asyncio.sleep(_TURN_SECONDS)
