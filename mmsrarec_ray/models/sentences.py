"""Vectors of short texts: from their words alone, or from a sentence encoder in a folder or on a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_BATCH = 64
_WORD_DIMENSIONS = 256

Encoder = Callable[[Sequence[str]], np.ndarray]
"""Texts to vectors of length 1, 0 for a text that says nothing: float32 (n, d)."""


def embed(texts: Sequence[str], encoder: str | None) -> np.ndarray:
    """A vector of length 1 for each text, 0 for an empty one: float32 (n, d). encoder: as in `encoder_of`."""
    return encoder_of(encoder, texts)(texts)


def encoder_of(encoder: str | None, texts: Sequence[str]) -> Encoder:
    """What makes vectors of texts. Plain data and weights: it can be pickled.

    encoder: folder or hub id of a sentence encoder (mean pooling, as all-MiniLM-L6-v2 does); None: tf-idf of the words
    of `texts`, with its largest singular directions kept (latent semantic analysis, Deerwester et al. 1990).
    """
    return WordEncoder(texts) if encoder is None else SentenceEncoder(encoder)


def _fitted_words(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(sublinear_tf=True, dtype=np.float64).fit(texts)
    except ValueError:  # an empty vocabulary
        return None


class WordEncoder:
    """Latent semantic analysis of a collection of texts; words that do not occur there count nothing."""

    def __init__(self, texts: Sequence[str]):
        from sklearn.decomposition import TruncatedSVD

        self.words, self.directions = _fitted_words(texts), None
        if self.words is None:
            return
        matrix = self.words.transform(texts)
        dimensions = min(_WORD_DIMENSIONS, min(matrix.shape) - 1)
        if dimensions >= 2:
            self.directions = TruncatedSVD(dimensions, random_state=0).fit(matrix)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.words is None or not len(texts):
            return np.zeros((len(texts), 1), np.float32)
        matrix = self.words.transform(texts)
        return _unit(matrix.toarray() if self.directions is None else self.directions.transform(matrix), texts)


class SentenceEncoder:
    """A transformer with mean pooling, in transformers."""

    def __init__(self, source: str):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.model = AutoModel.from_pretrained(source).eval()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        import torch

        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # batches of texts of about one length
        out = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = self.tokenizer([texts[p] for p in places], padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                states = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            out[places] = ((states * mask).sum(1) / mask.sum(1)).numpy()
        return _unit(out, texts)


def _unit(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(length > 0, vectors / np.maximum(length, 1e-12), 0).astype(np.float32)
    vectors[[not text.strip() for text in texts]] = 0
    return vectors
