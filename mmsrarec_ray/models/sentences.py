"""Vectors of short texts: from their words alone, or from a sentence encoder in a folder or on a hub."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BATCH = 64
_WORD_DIMENSIONS = 256


def embed(texts: Sequence[str], encoder: str | None) -> np.ndarray:
    """A vector of length 1 for each text, 0 for an empty one: float32 (n, d).

    encoder: folder or hub id of a sentence encoder (mean pooling, as all-MiniLM-L6-v2 does); None: tf-idf of the
    words, with its largest singular directions kept (latent semantic analysis, Deerwester et al. 1990).
    """
    vectors = _of_words(texts) if encoder is None else _encode(texts, encoder)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(length > 0, vectors / np.maximum(length, 1e-12), 0).astype(np.float32)
    vectors[[not text.strip() for text in texts]] = 0
    return vectors


def word_matrix(texts: Sequence[str]):
    """tf-idf of words, rows of length 1: sparse float64 (n, n_words), or None where there is no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(sublinear_tf=True, dtype=np.float64).fit_transform(texts).tocsr()
    except ValueError:  # an empty vocabulary
        return None


def _of_words(texts: Sequence[str]) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD

    matrix = word_matrix(texts)
    if matrix is None:
        return np.zeros((len(texts), 1), np.float32)
    dimensions = min(_WORD_DIMENSIONS, min(matrix.shape) - 1)
    if dimensions < 2:
        return matrix.toarray()
    return TruncatedSVD(dimensions, random_state=0).fit_transform(matrix)


def _encode(texts: Sequence[str], encoder: str) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # batches of texts of about one length
    out = np.zeros((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        batch = tokenizer([texts[p] for p in places], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        out[places] = ((states * mask).sum(1) / mask.sum(1)).numpy()
    return out
