"""The language model's score beside another method's, with weights learnt on the validation users alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.special import expit, logit
from torch import nn

from mmsrarec_ray.data.log import Cases, Queries
from mmsrarec_ray.data.negatives import untouched
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.methods.base import Dataset, Method, chunk_of
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.settings import Blend as BlendSettings

_LEAST = 1e-6  # of p(yes) and 1 - p(yes)
_CASES = 2_000  # validation cases that weights are learnt from, at most


class Blend(MmsraRec):
    """sigmoid(w . x): a conditional logit over the language model's log-odds and another method's score.

    x: log-odds of p(yes); the other's score above the mean of the query's known items, in their standard deviations
    (arcsinh); the logarithm of popularity; whether the item is known. w: the most likely for the positives of the
    validation users among drawn negatives, with a Gaussian prior. Where the other method learns from validation users
    too, its scores for these come from fits without them, fold by fold (stacking, Wolpert 1992).
    """

    def __init__(self, name: str, settings: BlendSettings, seed: int, other: Method, ours: MmsraRec):
        """other, ours: not yet fitted."""
        learnt = ours.scale, ours.segments, ours.adapter
        super().__init__(ours.config, ours.catalogue, ours.retrieval, *learnt, ours.earlier, ours.answers)
        self.name, self.settings, self.seed, self.other = name, settings, seed, other
        self.made = ours.earlier

    def learn(self, dataset: Dataset) -> None:
        if not len(dataset.validation):
            raise InputError(f"{self.name} learns its weights on the validation users, and there are none.")
        super().learn(dataset)
        self.counts = dataset.counts
        cases, candidates = learnt_from(dataset, self.settings, self.seed)
        said = super()._ask(cases.queries, candidates)
        known = _unseen(self.other, dataset, cases, candidates, self.settings.folds)
        self.earlier = {**self.made, **self.other.earlier}  # both may stand on the same retriever or encoder
        examples = np.stack([self._features(*each) for each in zip(said, known, candidates, strict=True)])
        self.weights = _fit(examples, self.settings.prior)

    def _ask(self, queries: Queries, candidates: list[np.ndarray]) -> list[np.ndarray]:
        said = super()._ask(queries, candidates)
        known = standardised(self.other, queries, candidates, self.counts > 0)
        return [expit(self._features(*each) @ self.weights) for each in zip(said, known, candidates, strict=True)]

    def _features(self, said: np.ndarray, known: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float64 (c, 4), in the order above."""
        odds = logit(np.clip(said, _LEAST, 1 - _LEAST))
        counts = self.counts[items]
        return np.column_stack([odds, known, np.log1p(counts), counts > 0])


def learnt_from(dataset: Dataset, settings: BlendSettings, seed: int) -> tuple[Cases, list[np.ndarray]]:
    """The validation cases that weights are learnt from, and the candidates of each: the positive, first, and uniform
    negatives, int64 (1 + negatives,). Raises InputError where the pool has too few."""
    cases, pool, found = _some(dataset.validation, seed), np.flatnonzero(dataset.pool), []
    for row, (history, positive) in enumerate(zip(cases.queries.histories, cases.positives, strict=True)):
        key = int(np.random.SeedSequence([seed, row]).generate_state(1)[0])
        drawn = untouched(pool, np.append(history, positive), settings.negatives, key)
        if len(drawn) < settings.negatives:
            raise InputError(f"methods.blend.negatives: {settings.negatives} are needed; got {len(drawn)}.")
        found.append(np.array([positive, *drawn], np.int64))
    return cases, found


def standardised(other: Method, queries: Queries, candidates: list[np.ndarray], known: np.ndarray) -> list[np.ndarray]:
    """Scores of each query's candidates against those of all known items, in their standard deviations: float64 (c,).

    known: bool (n_items,).
    """
    found = []
    for rows, part in queries.chunks(chunk_of(len(known))):
        scores = other.score_all(part)
        mean, spread = scores[:, known].mean(1), scores[:, known].std(1) + 1e-9
        for row, items in enumerate(candidates[rows]):
            found.append(np.arcsinh((scores[row, items].astype(np.float64) - mean[row]) / spread[row]))
    return found


def _unseen(
    other: Method, dataset: Dataset, cases: Cases, candidates: list[np.ndarray], folds: int
) -> list[np.ndarray]:
    """Standardised scores of validation cases from fits that did not learn from these cases: float64 (c,) of each.

    `other` is left fitted on the whole dataset.
    """
    known, found = dataset.counts > 0, [np.zeros(0)] * len(cases)
    users, own = dataset.validation.queries.histories.users, cases.queries.histories.users
    for fold in range(folds) if other.learns_from_validation else ():
        rest = dataset.validation.take(np.flatnonzero(users % folds != fold))
        other.fit(replace(dataset, validation=rest))
        rows = np.flatnonzero(own % folds == fold)
        asked = standardised(other, cases.take(rows).queries, [candidates[row] for row in rows], known)
        for row, scores in zip(rows, asked, strict=True):
            found[row] = scores
    other.fit(dataset)
    return found if other.learns_from_validation else standardised(other, cases.queries, candidates, known)


def _fit(examples: np.ndarray, prior: float) -> np.ndarray:
    """Weights of a conditional logit. examples: float64 (n, 1 + negatives, f), the positive first; prior: the inverse
    variance of a weight, in units of its feature's spread; float64 (f,)."""
    spread = examples.reshape(-1, examples.shape[-1]).std(0)
    spread = np.where(spread > 1e-9, spread, 1.0)  # what is alike everywhere gets no weight from the likelihood
    values = torch.from_numpy(examples / spread)
    weights = torch.zeros(values.shape[-1], dtype=torch.float64, requires_grad=True)
    target = torch.zeros(len(values), dtype=torch.long)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = nn.functional.cross_entropy(values @ weights, target, reduction="sum") + prior / 2 * weights @ weights
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach().numpy() / spread


def _some(cases: Cases, seed: int) -> Cases:
    if len(cases) <= _CASES:
        return cases
    return cases.take(np.sort(np.random.default_rng([seed, 7]).choice(len(cases), _CASES, replace=False)))
