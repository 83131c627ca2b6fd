"""What users of one's segments choose, told from words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.retrieve.segments import Segments
from mmsrarec_ray.settings import Segments as SegmentsSettings


class SegmentsMethod(Method):
    """log p(i | h) of `retrieve.segments`: popularity, and the lift that the words of the history give an item.

    It knows new items as well as old ones, by their words, as if nobody had chosen them yet.
    """

    name = "segments"

    def __init__(self, settings: SegmentsSettings, texts: Sequence[Sequence[str]], seed: int):
        """texts: of each facet, what is said of each item, in the order of the catalogue."""
        self.settings, self.texts, self.seed = settings, texts, seed

    def learn(self, dataset: Dataset) -> None:
        self.segments = Segments.learn(dataset.train, dataset.validation, self.texts, self.settings, self.seed)
        self.popularity = np.log1p(dataset.counts)

    def score_all(self, queries: Queries) -> np.ndarray:
        return self.segments.lifts(queries.histories) + self.popularity
