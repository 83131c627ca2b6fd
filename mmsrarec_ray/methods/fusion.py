"""A small network over what other methods say, fitted on the validation cases: none of them was trained on these,
but encoders chose on them when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import nn

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.methods.base import Dataset, Method, chunk_of
from mmsrarec_ray.methods.neighbours import DECAY, profiles
from mmsrarec_ray.models.sentences import embed
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.settings import Fusion as FusionSettings

_HELD = 1 << 26  # features held at a time: 256 MiB
_CASES = 10_000  # validation cases it is fitted on at most
_DRAWN = 500  # candidates a validation case whose features are kept, for the epochs to draw from
_NETWORKS = 5  # their mean is the score: one alone depends on its start
_BATCH = 128


@dataclass(frozen=True)
class Content:
    """What is said of the items: texts, in the order of the catalogue, and the encoder as in `embed`."""

    texts: Sequence[str]
    encoder: str | None


class Fusion(Method):
    """One hidden layer over features of a query and an item, fitted on the validation users.

    Features: each method's score, against the mean and the best of the query, in its standard deviations; popularity
    and whether the item is known; co-occurrence with the last item and with the history, both ways; the length of
    the history; with content, the cosine to the last item, to the history's mean and to its nearest item. The loss is
    softmax cross-entropy of the positive against negatives of the pool. Features of an item do not depend on the
    other candidates.
    """

    learns_from_validation = True

    def __init__(
        self,
        name: str,
        settings: FusionSettings,
        seed: int,
        methods: list[Method],
        content: Content | None,
        window: int,
    ):
        """methods: those it sees, not yet fitted; window: of co-occurrence, in places."""
        self.name, self.settings, self.seed = name, settings, seed
        self.methods, self.content, self.window = methods, content, window

    def learn(self, dataset: Dataset) -> None:
        if not len(dataset.validation):
            raise InputError("fusion is fitted on the validation users, and there are none.")
        for method in self.methods:
            method.fit(dataset)
        self.earlier = {name: seconds for method in self.methods for name, seconds in method.earlier.items()}
        self.features = _Features(dataset, self.methods, self.content, self.window)
        drawn = _draw(self.features, dataset, self.seed)
        flat = drawn.reshape(-1, drawn.shape[-1])
        mean, spread = flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64) + 1e-6
        self.scale = mean.astype(np.float32), spread.astype(np.float32)
        flat -= self.scale[0]
        flat /= self.scale[1]
        examples = torch.from_numpy(drawn)
        self.networks = [_fit(examples, self.settings, self.seed * _NETWORKS + n) for n in range(_NETWORKS)]

    def score_all(self, queries: Queries) -> np.ndarray:
        out = np.empty((len(queries), self.features.n_items), np.float32)
        for rows, part in queries.chunks(self.features.chunk):
            values = torch.from_numpy((self.features(part) - self.scale[0]) / self.scale[1])
            with torch.inference_mode():
                out[rows] = torch.stack([network(values)[..., 0] for network in self.networks]).mean(0).numpy()
        return out


def _draw(features: _Features, dataset: Dataset, seed: int) -> np.ndarray:
    """Features of the positive, first, and of drawn negatives of each validation case: float32 (n, 1 + drawn, f)."""
    rng = np.random.default_rng([seed, 5])
    pool, cases = np.flatnonzero(dataset.pool), dataset.validation
    if len(cases) > _CASES:
        cases = cases.take(np.sort(rng.choice(len(cases), _CASES, replace=False)))
    out: np.ndarray | None = None
    for rows, queries in cases.queries.chunks(features.chunk):
        seen = queries.histories
        items = rng.choice(pool, (len(queries), _DRAWN))
        owned = np.zeros((len(seen), len(dataset.pool)), bool)
        owned[seen.rows, seen.items] = True
        owned = np.take_along_axis(owned, items, 1) | (items == cases.positives[rows, None])
        fresh = items[np.arange(len(items)), (~owned).argmax(1)]  # takes the place of what the user has
        items = np.column_stack([cases.positives[rows], np.where(owned, fresh[:, None], items)])
        found = np.take_along_axis(features(queries), items[:, :, None].astype(np.int64), 1)
        if out is None:
            out = np.empty((len(cases), *found.shape[1:]), np.float32)
        out[rows] = found
    assert out is not None
    return out


def _fit(examples: torch.Tensor, settings: FusionSettings, seed: int) -> nn.Module:
    """One network. examples: float32 (n, 1 + drawn, f), standardised, the positive first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Linear(examples.shape[-1], settings.hidden), nn.GELU(), nn.Linear(settings.hidden, 1)
        network = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(examples) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(examples), generator=generator).split(_BATCH):
            drawn = torch.randint(1, examples.shape[1], (len(rows), settings.negatives), generator=generator)
            places = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), drawn], 1)
            logits = network(examples[rows[:, None], places])[..., 0]
            loss = nn.functional.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


class _Features:
    """Features of queries and all items: float32 (n_queries, n_items, f)."""

    def __init__(self, dataset: Dataset, methods: list[Method], content: Content | None, window: int):
        self.methods, self.n_items = methods, dataset.n_items
        counts = dataset.counts
        self.known = counts > 0
        self.of_items = np.stack([np.log1p(counts), self.known], 1).astype(np.float32)
        together = Cooccurrence.of(dataset.train, dataset.n_items, window).count.astype(np.float32)
        share = sparse.diags_array(1 / np.maximum(counts, 1).astype(np.float32))
        self.ways = [(share @ together).tocsr(), (share @ together.T).tocsr()]
        self.vectors = embed(content.texts, content.encoder) if content else None
        count = 2 * len(methods) + 2 * len(self.ways) + (4 if content else 0) + 1 + self.of_items.shape[1]
        self.chunk = chunk_of(dataset.n_items * count, _HELD)

    def __call__(self, queries: Queries) -> np.ndarray:
        n = len(queries)
        planes = [plane for method in self.methods for plane in self._standardised(method.score_all(queries))]
        for decay in (0.0, DECAY):  # the last item alone, and the history
            profile = profiles(queries, self.n_items, decay)
            planes += [np.sqrt((profile @ way).toarray()) for way in self.ways]
        planes += self._content(queries)
        length = np.log1p(queries.histories.lengths).astype(np.float32)
        planes.append(np.broadcast_to(length[:, None], (n, self.n_items)))
        fixed = np.broadcast_to(self.of_items, (n, *self.of_items.shape))
        return np.concatenate([np.stack(planes, 2, dtype=np.float32), fixed], 2)

    def _standardised(self, scores: np.ndarray) -> list[np.ndarray]:
        """Two planes: above the query's mean, and below its best, in standard deviations of its known items."""
        known = scores[:, self.known]
        spread = known.std(1, keepdims=True) + 1e-9
        lowest = known.min(1, keepdims=True)
        scores = np.maximum(scores, lowest)
        return [
            np.arcsinh((scores - known.mean(1, keepdims=True)) / spread),
            np.arcsinh((scores - known.max(1, keepdims=True)) / spread),
        ]

    def _content(self, queries: Queries) -> list[np.ndarray]:
        """Cosine to the last item, to the decayed and the plain mean of the history, and to its nearest item."""
        if self.vectors is None:
            return []
        means = [profiles(queries, self.n_items, decay) @ self.vectors for decay in (0.0, DECAY, 1.0)]
        planes = [mean @ self.vectors.T for mean in means]
        nearest = np.zeros((len(queries), self.n_items), np.float32)
        for row, history in enumerate(queries.histories):
            if len(history):
                nearest[row] = (self.vectors[history] @ self.vectors.T).max(0)
        return [*planes, nearest]
