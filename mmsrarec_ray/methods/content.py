"""Items like those of the history, by what is said of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.neighbours import popularity_tie_break, profiles
from mmsrarec_ray.models.sentences import embed
from mmsrarec_ray.settings import ContentKnn as ContentKnnSettings


class ContentKnn(Method):
    """Cosine of an item's words to those of the history, later items counting more; popularity breaks ties.

    It knows new items as well as old ones, and no other user.
    """

    name = "content_knn"

    def __init__(self, settings: ContentKnnSettings, texts: Sequence[str]):
        """texts: what is said of each item, in the order of the catalogue."""
        self.settings, self.texts = settings, texts

    def learn(self, dataset: Dataset) -> None:
        self.vectors = embed(self.texts, self.settings.encoder)
        self.tie_break = popularity_tie_break(dataset)

    def score_all(self, queries: Queries) -> np.ndarray:
        profile = profiles(queries, len(self.vectors), self.settings.decay) @ self.vectors
        return (profile @ self.vectors.T).astype(np.float64) + self.tie_break
