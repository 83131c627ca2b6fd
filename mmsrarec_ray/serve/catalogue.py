"""The bundle's catalogue with what was put and deleted since: the same questions, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmsrarec_ray.data.rows import place_of
from mmsrarec_ray.rank.catalogue import Catalogue, Said, line
from mmsrarec_ray.serve.keywords import words_of
from mmsrarec_ray.serve.store import Item


class LiveCatalogue:
    """Items by number. Those of the bundle keep theirs, whatever becomes of them; new ones follow in the order in
    which this replica learnt of them, so numbers never leave a process: ids do.

    gone: numbers of items that must not be shown.
    """

    def __init__(self, base: Catalogue, said: Said = "keywords"):
        """said: what stands for an item in `base`."""
        self.base, self.said = base, said
        self.known = len(base.ids)
        """How many items the bundle has."""
        self.gone: set[int] = set()
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._lines: dict[int, str] = {}
        self._halves: dict[int, tuple[str, str]] = {}
        self._shown: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self.known + len(self._ids)

    def number(self, item_id: str) -> int | None:
        """None of an item that nobody knows."""
        if item_id in self._numbers:
            return self._numbers[item_id]
        return place_of(self.base.ids, item_id)

    def id(self, number: int) -> str:
        return self.base.ids[number].as_py() if number < self.known else self._ids[number - self.known]

    def lines(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """As `rank.catalogue.Shown`."""
        words = self.base.words
        return [self._lines[n] if n in self._lines else words[n].as_py() for n in map(int, numbers)]

    def item(self, number: int) -> dict[str, Any]:
        """As `rank.catalogue.Shown`."""
        return self._shown[number] if number in self._shown else self.base.item(number)

    def title(self, number: int) -> str:
        """'' of an item that has none, or whose titles the catalogue was read without."""
        if number in self._shown:
            return self._shown[number].get("title") or ""
        shown = self.base.shown  # not its whole row: an answer names many items
        return shown["title"][number].as_py() or "" if "title" in shown.column_names else ""

    def keywords(self, number: int) -> tuple[str, ...]:
        """Those of its line; none where that is a title."""
        return () if self.said == "titles" else tuple(words_of(self.lines([number])[0]))

    def halves(self, number: int) -> tuple[str, str]:
        """Of an item that was put since the bundle was made: what its picture shows, and what its text says."""
        return self._halves[number]

    def learnt(self, number: int) -> bool:
        """Whether an item was put since the bundle was made."""
        return number in self._lines

    def learn(self, item: Item, own: bool) -> int | None:
        """Take over what the store says of an item, as far as the form of candidates needs it. own: the bundle was made
        from it as it is, and what the bundle says of it stands.

        Returns its number, None where nothing changes: of such an item, unless it was another meanwhile, and of one
        that nobody knew and that must not be shown. It is told of again when it may be."""
        number = self.number(item.item_id)
        if own:
            return self._restored(number)
        if number is None:
            if item.status != "ready":
                return None
            number = len(self)
            self._ids.append(item.item_id)
            self._numbers[item.item_id] = number
        self._lines[number] = line(self.said, item.title, item.image_keywords, item.text_keywords)
        self._halves[number] = ", ".join(item.image_keywords or ()), ", ".join(item.text_keywords or ())
        columns = {"title": item.title, "text": item.text, "image": item.image, "image_uri": None}
        self._shown[number] = {name: columns[name] for name in self.base.shown.column_names}
        if item.status == "ready":
            self.gone.discard(number)
        else:
            self.gone.add(number)
        return number

    def _restored(self, number: int | None) -> int | None:
        """The bundle's item is as it was at first; None where it has been so all the time."""
        if number is None or number not in self._lines:
            return None
        for changed in (self._lines, self._halves, self._shown):
            del changed[number]
        self.gone.discard(number)
        return number
