"""How a replica learns what has changed: it reads the store's changes up to the place a request was made at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.store import Item, Store, page_of_changes

_News = list[tuple[int, Item | str, bool]]
"""Places, items or ids of users, and of items whether the bundle was made from them."""


class Feed:
    """Applies changes in order, each once. A request names the place it has to know of, so whoever wrote something
    sees it in the next answer, whichever replicas give it."""

    def __init__(
        self,
        store: Store,
        contents: Contents,
        on_item: Callable[[Item, bool], None],
        on_user: Callable[[str, int], None],
        pictures: bool = True,
    ):
        """contents: of the bundle; on_item: takes an item that changed, and whether the bundle was made from it as it
        is; on_user: takes who was deleted, and when (ms); pictures: whether items need theirs."""
        self._store, self._contents, self._pictures = store, contents, pictures
        self._on_item, self._on_user = on_item, on_user
        self._position = 0
        self._reading: asyncio.Task[None] | None = None

    async def catch_up(self, position: int) -> None:
        """Returns when all up to this place is applied.

        Who waits may go; what is being read is applied all the same, so a replica that is far behind gets on however
        short the deadlines are of those who ask it."""
        while (before := self._position) < position:
            anew = self._reading is None or self._reading.done()
            if anew:
                self._reading = asyncio.create_task(self._read_on())
                self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # if nobody waits
            assert self._reading is not None
            await asyncio.shield(self._reading)
            # A reading that began before this was asked may have begun before the change was made.
            if anew and self._position == before:
                return

    async def _read_on(self) -> None:
        """A page."""
        self._apply(await asyncio.to_thread(self._read))  # in the loop's own thread: nobody sees a half-made change

    def begin(self) -> None:
        """All there is by now, before the first request."""
        while news := self._read():
            self._apply(news)

    def _apply(self, news: _News) -> None:
        for place, value, own in news:
            if isinstance(value, Item):
                self._on_item(value, own)
            else:
                self._on_user(value, place)
            self._position = place

    def _read(self) -> _News:
        changes, items = page_of_changes(self._store, self._position, self._pictures)
        found = [(each.position, items.get(each.id) if each.kind == "item" else each.id) for each in changes]
        there = ((place, value) for place, value in found if value is not None)
        return [(place, value, isinstance(value, Item) and self._is_own(value)) for place, value in there]

    def _is_own(self, item: Item) -> bool:
        """Whether the bundle was made from an item as it is. Its picture is read where it may be."""
        if item.status != "ready" or item.item_id not in self._contents:
            return False
        whole = item if self._pictures else self._store.items([item.item_id]).get(item.item_id)
        return whole is not None and whole.version == item.version and self._contents.has(whole)
