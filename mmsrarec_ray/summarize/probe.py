"""What features of pictures know of their labels: a linear probe (Alain and Bengio 2017, arXiv:1610.01644)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmsrarec_ray.intervals import interval, paired
from mmsrarec_ray.summarize.catalogue import TEST, TRAIN, VALIDATION

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_ITERATIONS = 2_000
_RESAMPLES = 2_000

Splits = Mapping[str, np.ndarray]


def ranked(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Of each picture, how far up its labels stand among all: label ranking average precision, float64 (n,), in (0, 1].

    scores: float (n, n_labels); marks: bool (n, n_labels), at least one a row.
    """
    each = zip(marks[:, None], scores[:, None], strict=True)
    return np.array([label_ranking_average_precision_score(*row) for row in each])


def probed(features: Splits, marks: Splits) -> np.ndarray:
    """`ranked` of test pictures by logistic regressions on features, one a label. They learn from training pictures;
    their regularisation is chosen on validation pictures.

    features: float (n, width) of each split; marks: bool (n, n_labels).
    """
    each = (LogisticRegression(C=strength, max_iter=_ITERATIONS) for strength in _STRENGTHS)
    probes = (make_pipeline(StandardScaler(), OneVsRestClassifier(one)) for one in each)
    fitted = [probe.fit(features[TRAIN], marks[TRAIN]) for probe in probes]
    scores = [each.decision_function(features[VALIDATION]) for each in fitted]
    best = int(np.argmax([ranked(each, marks[VALIDATION]).mean() for each in scores]))
    return ranked(fitted[best].decision_function(features[TEST]), marks[TEST])


def compare(features: Mapping[str, Splits], marks: Splits, seed: int) -> dict[str, Any]:
    """`probed` of several kinds of features on the same test pictures: mean and 95 % interval of each, and the paired
    difference to the first; beside them the labels in the order of how common they are, which looks at nothing."""
    common = ranked(np.tile(marks[TRAIN].mean(0), (len(marks[TEST]), 1)), marks[TEST])
    values = {"commonest labels": common} | {name: probed(each, marks) for name, each in features.items()}
    first = values[next(iter(features))]
    told: dict[str, Any] = {"items": len(first)}
    for name, each in values.items():
        low, high = interval(each[:, None], _RESAMPLES, seed)
        told[name] = {"value": float(each.mean()), "low": float(low[0]), "high": float(high[0])}
        if each is not first:
            more = paired(each[:, None], first[:, None], _RESAMPLES, seed)
            told[name]["gain"] = {key: float(getattr(more, key)[0]) for key in ("difference", "low", "high", "p")}
    return told
