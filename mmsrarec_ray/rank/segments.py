"""Segments of users as prompts tell of them: learnt from keywords with the recommender, and kept with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Log, Sequences
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.rank.catalogue import Said
from mmsrarec_ray.retrieve.moments import ALL_USERS, folds_of
from mmsrarec_ray.retrieve.segments import Segments
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.published import read_halves

_FOLDER = "segments"


@dataclass(frozen=True)
class FoldedSegments:
    """Segments by fold, each learnt from the training users of the other folds, and by ALL_USERS those of all: what a
    training user chose must not be known from its own trace."""

    by_fold: Mapping[int, Segments]

    @property
    def whole(self) -> Segments:
        """Those of all training users."""
        return self.by_fold[ALL_USERS]

    def lifts_of(
        self, histories: Sequence[np.ndarray], rows: np.ndarray, items: np.ndarray, folds: np.ndarray | None
    ) -> np.ndarray:
        """log lift of some items, each for the history of its row: float64 (p,).

        histories: numbers of items, an array for each; rows, items: int64 (p,); folds: int64 (n_histories,), whose
        segments are asked, None: those of all users.
        """
        found = np.zeros(len(rows))
        for segments, chosen, some in self._parts(histories, folds):
            place = np.full(len(histories), -1)
            place[chosen] = np.arange(len(chosen))
            asked = place[rows] >= 0
            found[asked] = segments.lifts_of(some, place[rows[asked]], items[asked])
        return found

    def liked(self, histories: Sequence[np.ndarray], most: int, folds: np.ndarray | None = None) -> list[list[str]]:
        """What the segments that each history speaks for like best, a line of at most so many words a facet."""
        found: list[list[str]] = [[] for _ in histories]
        for segments, chosen, some in self._parts(histories, folds):
            for row, lines in zip(chosen, segments.liked(some, most), strict=True):
                found[row] = lines
        return found

    def _parts(
        self, histories: Sequence[np.ndarray], folds: np.ndarray | None
    ) -> Iterator[tuple[Segments, np.ndarray, Sequences]]:
        """The segments of each fold, with the rows and the histories that ask them."""
        fold = np.full(len(histories), ALL_USERS) if folds is None else folds
        for number in np.unique(fold):
            rows = np.flatnonzero(fold == number)
            yield self.by_fold[int(number)], rows, Sequences.of([histories[row].tolist() for row in rows])


def wanted(config: Config) -> bool:
    """Whether prompts tell of segments."""
    return "segments" in config.rank.evidence or config.rank.liked > 0


def heard(said: Said, title: str, image: str, text: str) -> tuple[str, str]:
    """What segments know of an item: its picture and its text, as far as prompts tell of them. image, text: keywords,
    as `read_halves` gives them."""
    if said == "titles":
        return "", title
    return "" if said == "text_keywords" else image, "" if said == "image_keywords" else text


def _facets(config: Config, items: pa.Array, dataset: Folder, keywords: Folder | None) -> list[list[str]]:
    """The same of all items: two lists of lines."""
    titles = image = text = [""] * len(items)
    if config.rank.said == "titles":
        table = read_parts(dataset / "items", ["item_id", "title"])
        places = pc.index_in(items, value_set=table["item_id"].combine_chunks())
        titles = [title or "" for title in table["title"].take(places).to_pylist()]
    if keywords is not None:
        image, text = read_halves(keywords, items)
    known = zip(titles, image, text, strict=True)
    return [list(half) for half in zip(*(heard(config.rank.said, *each) for each in known), strict=True)]


def learn_segments(config: Config, log: Log, dataset: Folder, keywords: Folder | None) -> FoldedSegments | None:
    """From the training users' choices and the published keywords, with the retriever's folds; None where prompts do
    not tell of them. keywords: None where titles stand for items."""
    if not wanted(config):
        return None
    training, validation = log.train(), log.cases("validation")
    settings, seed = config.retrieve, config.tune_recommender.seed
    fold = folds_of(log.users.take(pa.array(training.users)).to_pylist(), settings.folds, settings.seed)
    texts, progress = _facets(config, log.items, dataset, keywords), Progress("segments", settings.folds + 1, "folds")
    learnt: dict[int, Segments] = {}
    for number in (ALL_USERS, *range(settings.folds)):
        users = training if number == ALL_USERS else training.take(fold != number)
        learnt[number] = Segments.learn(users, validation, texts, config.methods.segments, seed)
        progress.update(len(learnt))
    return FoldedSegments(learnt)


def write_segments(segments: FoldedSegments | None, recommender: Folder) -> None:
    """Keep those of all users, where there are any."""
    if segments is not None:
        segments.whole.save(recommender / _FOLDER)


def read_segments(
    config: Config, items: pa.Array, dataset: Folder, keywords: Folder | None, recommender: Folder
) -> FoldedSegments | None:
    """Those of all users, as `write_segments` left them. items: string ids of the catalogue."""
    if not wanted(config):
        return None
    facets = _facets(config, items, dataset, keywords)
    return FoldedSegments({ALL_USERS: Segments.load(recommender / _FOLDER, facets)})
