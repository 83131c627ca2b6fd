"""How good an encoder is on validation cases, without the noise of drawn negatives."""

from __future__ import annotations

from math import comb, log2

import numpy as np
import torch

from mmsrarec_ray.data.log import Cases
from mmsrarec_ray.retrieve.encoders import SequenceEncoder

_NEGATIVES, _TOP = 20, 5  # the paper's protocol: NDCG@5 among a positive and 20 negatives
_MOST_CASES, _SCORES = 256, 1 << 23  # validation cases scored at a time, and their scores


def expected_ndcg(shares: np.ndarray) -> np.ndarray:
    """Expected NDCG@5 where a negative is above the positive with this probability: float64 (n,) to (n,).

    Of 20 independent negatives j are above with probability Binomial(20, p)(j), and NDCG@5 is then 1 / log2(j + 2)
    for j < 5, else 0. NaN, a positive without a score, counts 0.
    """
    p = np.nan_to_num(shares, nan=1.0)
    terms = (comb(_NEGATIVES, j) * p**j * (1 - p) ** (_NEGATIVES - j) / log2(j + 2) for j in range(_TOP))
    return np.sum(list(terms), axis=0)


def shares_above(encoder: SequenceEncoder, cases: Cases) -> np.ndarray:
    """Share of the known items outside the history that score above the positive, ties half: float64 (n,).

    The positive is not compared with itself; NaN where it is unknown.
    """
    vocabulary, v = encoder.vocabulary, len(encoder.vocabulary)
    shares = np.full(len(cases), np.nan)
    positives = vocabulary.numbers[cases.positives]
    known = np.flatnonzero(positives >= 0)
    chunk = max(1, min(_MOST_CASES, _SCORES // v))
    for rows in (known[start : start + chunk] for start in range(0, len(known), chunk)):
        part, wanted = cases.take(rows).queries, positives[rows]
        history = vocabulary.known(part.histories)
        left_out = np.unique(np.concatenate([history.rows * v + history.items, np.arange(len(rows)) * v + wanted]))
        others = v - np.bincount(left_out // v)
        with torch.inference_mode():
            scores = encoder.embed(part) @ encoder.item_table.T
            own = scores.gather(1, torch.from_numpy(wanted).to(scores.device)[:, None])
            signs = (scores - own).sign_()
            signs.view(-1)[torch.from_numpy(left_out).to(signs.device)] = 0
            above_less_below = signs.sum(1, dtype=torch.float64).cpu().numpy()
        shares[rows] = (above_less_below + others) / 2 / np.maximum(1, others)  # their sum is others less ties
    return shares
