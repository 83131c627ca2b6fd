"""What is known of items and users, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

from mmsrarec_ray.serve.finder import Finder


@dataclass(frozen=True)
class ItemView:
    """An item as people see it."""

    item_id: str
    title: str
    text: str
    keywords: tuple[str, ...]


@dataclass(frozen=True)
class UserView:
    """known: whether the bundle has the user; history: the newest first."""

    known: bool
    history: list[ItemView]


class Looker:
    """Reads a finder's catalogue and people."""

    def __init__(self, finder: Finder):
        self._finder, self._catalogue = finder, finder.catalogue
        base = self._catalogue.base
        titles = base.shown["title"].to_pylist()
        # Row by row, a search among a hundred thousand items would keep the replica from answering for seconds.
        self._texts = [_text(*each) for each in zip(titles, base.words.to_pylist(), strict=True)]

    def item(self, item_id: str) -> ItemView | None:
        """None of one that nobody knows or that must not be shown."""
        number = self._catalogue.number(item_id)
        return None if number is None or number in self._catalogue.gone else self._view(number)

    def items(self, query: str, offset: int, limit: int) -> tuple[list[ItemView], int]:
        """Items whose title or keywords hold all words of the query, newly put ones first; and how many there are."""
        words = query.casefold().split()
        order = [*range(self._catalogue.known, len(self._catalogue)), *range(self._catalogue.known)]
        shown = [number for number in order if number not in self._catalogue.gone]
        if words:
            shown = [number for number in shown if all(word in self._searched(number) for word in words)]
        return [self._view(number) for number in shown[offset : offset + limit]], len(shown)

    def user(self, user_id: str, later: list[str]) -> UserView:
        """later: what the store knows of the user, the oldest first."""
        history = self._finder.history(user_id, later)[::-1]
        known = self._finder.people.number(user_id) is not None
        return UserView(known, [self._view(number) for number in history])

    def _searched(self, number: int) -> str:
        if self._catalogue.learnt(number):
            return _text(self._catalogue.title(number), self._catalogue.lines([number])[0])
        return self._texts[number]

    def _view(self, number: int) -> ItemView:
        item = self._catalogue.item(number)
        return ItemView(
            self._catalogue.id(number), item["title"] or "", item["text"] or "", self._catalogue.keywords(number)
        )


def _text(title: str | None, line: str) -> str:
    """What an item is found by."""
    return f"{title or ''} {line}".casefold()
