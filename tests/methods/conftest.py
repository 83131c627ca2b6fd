"""A small world for methods: users who like even items, users who like odd ones, and two items nobody chose."""

from __future__ import annotations

import numpy as np
import pytest

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.methods.base import Dataset

N_ITEMS = 22
TEXTS = [f"an {'even' if item % 2 == 0 else 'odd'} thing number {item}" for item in range(N_ITEMS)]


def draw(users: int, seed: int, first_user: int = 0) -> Sequences:
    """Histories of 4 to 8 different items, all even or all odd, none of the last two."""
    rng = np.random.default_rng(seed)
    histories = []
    for user in range(users):
        liked = np.arange(user % 2, N_ITEMS - 2, 2)
        histories.append(rng.permutation(liked)[: rng.integers(4, 9)].tolist())
    return Sequences.of(histories, np.arange(first_user, first_user + users))


def ask(sequences: Sequences) -> Cases:
    """The last item of each, after all before it."""
    ends = sequences.starts[1:] - 1
    histories = sequences.beginnings(np.arange(len(sequences)), sequences.lengths - 1)
    return Cases(Queries(histories, sequences.times[ends]), sequences.items[ends])


@pytest.fixture(scope="session")
def world() -> Dataset:
    return Dataset(N_ITEMS, draw(200, 1), ask(draw(60, 2, 200)), np.arange(N_ITEMS) != 4)


@pytest.fixture(scope="session")
def cases() -> Cases:
    return ask(draw(40, 3, 260))
