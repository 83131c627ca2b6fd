"""Sequence encoders on item ids: a history becomes a vector, and a vector scores the items.

Every sequence begins with a start token, so an empty history has an embedding like any other. Rows are
left-aligned: what a causal encoder says of a row cannot depend on the padding after it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from mmsrarec_ray.data.log import Queries, Sequences
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.store import Folder

WEIGHTS = "weights.safetensors"
ENCODER = "encoder.json"
_CHUNK = 256  # histories encoded at a time
_EMBEDDING_STD = 0.02
# Sun et al. 2019, section 3.6: some training sequences look like the question at inference.
_LAST_ITEM_ONLY = 0.2


@dataclass(frozen=True)
class Vocabulary:
    """The items an encoder knows: those with a training interaction.

    items: int32 (v,), their catalogue numbers, ascending; n_items: size of the catalogue.
    """

    items: np.ndarray
    n_items: int

    @classmethod
    def of(cls, train: Sequences, n_items: int) -> Vocabulary:
        return cls(np.unique(train.items).astype(np.int32), n_items)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def numbers(self) -> np.ndarray:
        """Vocabulary number of each item of the catalogue, -1 where it is unknown: int64 (n_items,)."""
        numbers = np.full(self.n_items, -1, np.int64)
        numbers[self.items] = np.arange(len(self.items))
        return numbers

    def known(self, sequences: Sequences) -> Sequences:
        """The known items of each row, as vocabulary numbers."""
        numbers = self.numbers[sequences.items]
        kept = numbers >= 0
        counts = np.bincount(sequences.rows[kept], minlength=len(sequences))
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Sequences(sequences.users, starts, numbers[kept], sequences.times[kept])


@dataclass(frozen=True)
class Batch:
    """Sequences to learn from.

    items: int64 (b, l), vocabulary numbers, left-aligned, -1 after the end; begins: bool (b,), whether the row
    begins where its user did. Where it does not, the first item is what others follow, but follows nothing itself.
    """

    items: torch.Tensor
    begins: torch.Tensor


def left_aligned(items: np.ndarray, firsts: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Pieces of an array, one a row: int64 (n, longest), -1 after the end. firsts, lengths: int64 (n,)."""
    places = np.arange(lengths.max(initial=0))
    inside = places < lengths[:, None]
    rows = np.full(inside.shape, -1, np.int64)
    rows[inside] = items[(firsts[:, None] + places)[inside]]
    return torch.from_numpy(rows)


class SequenceEncoder(nn.Module, ABC):
    """What the encoders share: the table of items, the loss, encoding, scoring and storing.

    The table of item embeddings is also the output layer. Raises ConfigError where `heads` does not divide `dim`.
    """

    kind: ClassVar[str]
    special_tokens: ClassVar[int] = 1

    def __init__(self, settings: EncoderSettings, vocabulary: Vocabulary):
        super().__init__()
        self.settings, self.vocabulary = settings, vocabulary
        self.start = len(vocabulary)
        self.table = nn.Embedding(len(vocabulary) + self.special_tokens, settings.dim)
        nn.init.normal_(self.table.weight, std=_EMBEDDING_STD)
        self.dropout = nn.Dropout(settings.dropout)

    @property
    def item_table(self) -> torch.Tensor:
        """Embeddings of the known items: float32 (v, dim)."""
        return self.table.weight[: len(self.vocabulary)]

    @abstractmethod
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states: int64 (b, l), -1 after the end, to float32 (b, l, dim)."""

    @abstractmethod
    def exercise(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What is shown and what is to be told at each place: int64 (b, l) both, -1 where nothing is."""

    def question(self, items: torch.Tensor) -> torch.Tensor:
        """Tokens whose last one in each row stands for the sequence. items: int64 (b, l), -1 after the end."""
        return _prefixed(items, self.start)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, int]:
        """Cross-entropy summed over the targets, float32 (), and the number of targets.

        generator: on the CPU; decides masks and negatives. Dropout draws from torch's own.
        """
        shown, wanted = self.exercise(batch, generator)
        asked = wanted >= 0
        hidden, targets = self(shown)[asked], wanted[asked]
        negatives = None
        if self.settings.negatives is not None:
            negatives = torch.randint(len(self.vocabulary), (self.settings.negatives,), generator=generator)
            negatives = negatives.to(targets.device)
        return softmax_loss(hidden, self.item_table, targets, negatives), len(targets)

    def embed(self, queries: Queries) -> torch.Tensor:
        """The embeddings of `encode`, on the encoder's device."""
        histories = self.vocabulary.known(queries.histories)
        lengths = np.minimum(histories.lengths, self.settings.max_length)
        device = self.table.weight.device
        out = torch.empty((len(queries), self.settings.dim), device=device)
        with self._inference():
            order = np.argsort(lengths, kind="stable")
            for rows in (order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)):
                ends = histories.starts[1:][rows]
                items = left_aligned(histories.items, ends - lengths[rows], lengths[rows])
                tokens = self.question(items.to(device))
                last = (tokens >= 0).sum(1) - 1
                out[torch.from_numpy(rows).to(device)] = self(tokens)[torch.arange(len(rows), device=device), last]
        return out

    def encode(self, queries: Queries) -> np.ndarray:
        """Embedding of each history at its end: float32 (n_queries, dim).

        Unknown items are skipped; of what is left, the last `max_length` count.
        """
        return self.embed(queries).cpu().numpy()

    def score_all(self, queries: Queries) -> np.ndarray:
        """Logits of the catalogue: float32 (n_queries, n_items).

        All unknown items of a query have the same score, the next float below its lowest known one.
        """
        with self._inference():
            known = (self.embed(queries) @ self.item_table.T).cpu().numpy()
        lowest = np.nextafter(known.min(1, keepdims=True), np.float32(-np.inf))
        scores = np.broadcast_to(lowest, (len(queries), self.vocabulary.n_items)).copy()
        scores[:, self.vocabulary.items] = known
        return scores

    def save(self, folder: Folder) -> None:
        """Write the weights and, last, what they are: an encoder without its `encoder.json` is unfinished."""
        tensors = {name: weights.detach().cpu().contiguous() for name, weights in self.state_dict().items()}
        tensors["vocabulary"] = torch.from_numpy(self.vocabulary.items)
        folder.write_bytes(WEIGHTS, safetensors.torch.save(tensors))
        about = {"kind": self.kind, "n_items": self.vocabulary.n_items, "settings": self.settings.model_dump()}
        folder.write_bytes(ENCODER, json.dumps(about, indent=2).encode())

    @contextmanager
    def _inference(self) -> Iterator[None]:
        before = self.training
        self._set_training(False)
        with torch.inference_mode():
            yield
        self._set_training(before)

    def _set_training(self, wanted: bool) -> None:
        if self.training != wanted:  # going through all modules is no small part of what a single query costs
            self.train(wanted)


def load_encoder(folder: Folder) -> SequenceEncoder:
    """What `save` wrote, on the CPU, ready for inference. Raises ArtefactError where there is none."""
    if not folder.exists(ENCODER):
        raise ArtefactError(f"{folder.path}: there is no finished encoder.")
    about = json.loads(folder.read_bytes(ENCODER))
    tensors = safetensors.torch.load(folder.read_bytes(WEIGHTS))
    vocabulary = Vocabulary(tensors.pop("vocabulary").numpy(), about["n_items"])
    encoder = KINDS[about["kind"]](EncoderSettings.model_validate(about["settings"]), vocabulary)
    encoder.load_state_dict(tensors)
    return encoder.eval()


def softmax_loss(
    hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor | None
) -> torch.Tensor:
    """Summed cross-entropy of each target against the whole table, or against these negatives alone.

    hidden: float32 (n, dim); table: float32 (v, dim); targets: int64 (n,); negatives: int64 (k,), drawn uniformly.
    A negative that is a row's own target does not count for that row. Uniform negatives need no correction: the
    scores that minimise the expected loss are log-probabilities up to a constant (Ma & Collins 2018,
    arXiv:1809.01812); Klenitskiy & Vasilev 2023, arXiv:2309.07602, show what both do for SASRec.
    """
    if negatives is None:
        return functional.cross_entropy(hidden @ table.T, targets, reduction="sum")
    positive = (hidden * functional.embedding(targets, table)).sum(1, keepdim=True)
    others = hidden @ functional.embedding(negatives, table).T
    others = others.masked_fill(targets[:, None] == negatives, -torch.inf)
    return functional.cross_entropy(torch.cat([positive, others], 1), torch.zeros_like(targets), reduction="sum")


def _prefixed(items: torch.Tensor, token: int) -> torch.Tensor:
    return torch.cat([items.new_full((len(items), 1), token), items], 1)


class _NextItem(SequenceEncoder):
    """Encoders that look back only: each place tells the item that follows it."""

    def exercise(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = batch.items.clone()
        wanted[~batch.begins, 0] = -1
        return _prefixed(batch.items[:, :-1], self.start), wanted


class _Block(nn.Module):
    """A pre-norm transformer layer, as narrow as Kang & McAuley's: four times as wide it learns no faster.

    Attention weights are not dropped: with dropout torch has no fused kernel on the CPU.
    """

    def __init__(self, settings: EncoderSettings):
        super().__init__()
        dim, self.heads = settings.dim, settings.heads
        self.before_attention, self.before_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention_in, self.attention_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """states: float32 (b, l, dim); mask: bool (b, 1, 1, l), what may be looked at; None: what came before."""
        split = self.attention_in(self.before_attention(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        states = states + self.dropout(self.attention_out(seen.transpose(1, 2).flatten(2)))
        return states + self.dropout(self.feed(self.before_feed(states)))


class _Transformer(nn.Module):
    """Learned positions, a stack of blocks, and a norm at the end."""

    def __init__(self, settings: EncoderSettings, positions: int):
        super().__init__()
        if settings.dim % settings.heads:
            raise ConfigError(f"`heads` must divide `dim`, {settings.dim}. Got {settings.heads}.")
        self.positions = nn.Embedding(positions, settings.dim)
        nn.init.normal_(self.positions.weight, std=_EMBEDDING_STD)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, states: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        states = self.dropout(states + self.positions(positions))
        for block in self.blocks:
            states = block(states, mask)
        return self.norm(states)


class SASRec(_NextItem):
    """Self-attention that looks back (Kang & McAuley 2018, arXiv:1808.09781), trained by softmax over items.

    Positions count from the start token; a history that is too long starts anew at its last `max_length` items.
    """

    kind = "sasrec"

    def __init__(self, settings: EncoderSettings, vocabulary: Vocabulary):
        super().__init__(settings, vocabulary)
        self.transformer = _Transformer(settings, settings.max_length + 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.transformer(self.table(tokens.clamp(min=0)), positions, None)


class GRU4Rec(_NextItem):
    """A gated recurrent network (Hidasi et al. 2016, arXiv:1511.06939), trained by softmax over items."""

    kind = "gru4rec"

    def __init__(self, settings: EncoderSettings, vocabulary: Vocabulary):
        super().__init__(settings, vocabulary)
        between = settings.dropout if settings.layers > 1 else 0.0
        self.gru = nn.GRU(settings.dim, settings.dim, settings.layers, batch_first=True, dropout=between)
        self.norm = nn.LayerNorm(settings.dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(self.dropout(self.table(tokens.clamp(min=0))))
        return self.norm(self.dropout(states))


class BERT4Rec(SequenceEncoder):
    """Self-attention in both directions, trained on masked items (Sun et al. 2019, arXiv:1904.06690).

    A history is asked with a mask behind it. Positions count from the end, so that this mask is always the same.
    """

    kind = "bert4rec"
    special_tokens = 2

    def __init__(self, settings: EncoderSettings, vocabulary: Vocabulary):
        super().__init__(settings, vocabulary)
        self.mask = self.start + 1
        self.transformer = _Transformer(settings, settings.max_length + 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        there = tokens >= 0
        places = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (there.sum(1, keepdim=True) - 1 - places).clamp(min=0)
        return self.transformer(self.table(tokens.clamp(min=0)), positions, there[:, None, None])

    def exercise(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        items = batch.items
        there = items >= 0
        last = torch.arange(items.shape[1], device=items.device) == there.sum(1, keepdim=True) - 1
        draws = torch.rand(items.shape, generator=generator).to(items.device)
        masked = (draws < self.settings.mask_share) & there
        last_only = (torch.rand((len(items), 1), generator=generator) < _LAST_ITEM_ONLY).to(items.device)
        masked = torch.where(last_only | ~masked.any(1, keepdim=True), last, masked)
        shown, wanted = items.masked_fill(masked, self.mask), items.masked_fill(~masked, -1)
        return _prefixed(shown, self.start), _prefixed(wanted, -1)

    def question(self, items: torch.Tensor) -> torch.Tensor:
        tokens = _prefixed(torch.cat([items, items.new_full((len(items), 1), -1)], 1), self.start)
        return tokens.scatter(1, (tokens >= 0).sum(1, keepdim=True), self.mask)


KINDS: dict[str, type[SequenceEncoder]] = {each.kind: each for each in (SASRec, GRU4Rec, BERT4Rec)}
