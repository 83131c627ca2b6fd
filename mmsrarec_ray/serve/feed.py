"""How a replica learns what has changed: it reads the store's changes up to the place a request was made at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mmsrarec_ray.serve.store import Item, Store, page_of_changes


class Feed:
    """Applies changes in order, each once. A request names the place it has to know of, so whoever wrote something
    sees it in the next answer, whichever replicas give it."""

    def __init__(
        self, store: Store, on_item: Callable[[Item], None], on_user: Callable[[str], None], pictures: bool = True
    ):
        """pictures: whether items need theirs."""
        self._store, self._on_item, self._on_user, self._pictures = store, on_item, on_user, pictures
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

    def _apply(self, news: list[tuple[int, str, Item | str]]) -> None:
        for place, kind, item in news:
            if isinstance(item, Item):
                self._on_item(item)
            elif kind == "user":
                self._on_user(item)
            self._position = place

    def _read(self) -> list[tuple[int, str, Item | str]]:
        changes, items = page_of_changes(self._store, self._position, self._pictures)
        found = [(each, items.get(each.id) if each.kind == "item" else each.id) for each in changes]
        return [(each.position, each.kind, value) for each, value in found if value is not None]
