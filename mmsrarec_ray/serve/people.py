"""Users of the bundle and what they did before it was made."""

from __future__ import annotations

import bisect

from mmsrarec_ray.data.log import Log


class People:
    """Users by id. A forgotten one is unknown from then on."""

    def __init__(self, log: Log):
        self._log = log
        self._forgotten: set[str] = set()

    def __len__(self) -> int:
        return len(self._log.users)

    def number(self, user_id: str) -> int | None:
        """None of a user whom the bundle does not know."""
        if user_id in self._forgotten:
            return None
        users = self._log.users  # in order
        place = bisect.bisect_left(range(len(users)), user_id, key=lambda row: users[row].as_py())
        return place if place < len(users) and users[place].as_py() == user_id else None

    def history(self, user_id: str) -> list[int]:
        """Numbers of the items, the oldest first; none of an unknown user."""
        number = self.number(user_id)
        return [] if number is None else self._log.sequences[number].tolist()

    def forget(self, user_id: str, moment: int) -> int | None:
        """Returns the number the user had; None where the bundle has nothing that is as old: who was deleted came back,
        and was learnt anew. moment: of the deletion, in milliseconds, which is later than any position."""
        number = self.number(user_id)
        if number is not None and self._first(number) > moment:
            return None
        self._forgotten.add(user_id)
        return number

    def _first(self, number: int) -> int:
        """When the user did the first thing that the bundle knows of."""
        return int(self._log.sequences.times[self._log.sequences.starts[number]])

    def some(self, start: str, limit: int) -> list[str]:
        """Ids from `start` on, in order."""
        users = self._log.users
        place = bisect.bisect_left(range(len(users)), start, key=lambda row: users[row].as_py())
        rows = (users[row].as_py() for row in range(place, min(len(users), place + limit + len(self._forgotten))))
        return [user for user in rows if user not in self._forgotten][:limit]
