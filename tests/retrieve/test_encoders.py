"""The encoders: what an embedding depends on, what unknown items score, what the losses are."""

import numpy as np
import pytest
import torch

from mmsrarec_ray.data.log import Queries, Sequences
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.retrieve.encoders import KINDS, Batch, SASRec, Vocabulary, load_encoder, softmax_loss
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.store import Folder

N_ITEMS = 12
TRAIN = Sequences.of([[1, 3, 5], [7, 9], [10, 4, 2]])
UNKNOWN = [0, 6, 8, 11]
SETTINGS = EncoderSettings(dim=8, layers=2, heads=2, max_length=4, dropout=0.5)


def new(kind, **changes):
    torch.manual_seed(0)
    encoder = KINDS[kind](SETTINGS.model_copy(update=changes), Vocabulary.of(TRAIN, N_ITEMS))
    for weights in encoder.parameters():  # nothing is near zero, so that what should matter does
        torch.nn.init.normal_(weights, std=0.5)
    return encoder


def ask(*histories):
    return Queries(Sequences.of(list(histories)), np.zeros(len(histories), np.int64))


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


def test_vocabulary_skips_what_it_does_not_know():
    vocabulary = Vocabulary.of(TRAIN, N_ITEMS)
    assert vocabulary.items.tolist() == [1, 2, 3, 4, 5, 7, 9, 10]
    assert np.flatnonzero(vocabulary.numbers < 0).tolist() == UNKNOWN
    known = vocabulary.known(Sequences.of([[0, 10, 6, 1], [], [8], [3]]))
    assert [row.tolist() for row in known] == [[7, 0], [], [], [2]]


def test_batching_changes_nothing(kind):
    histories = [[], [1], [3, 5, 7, 9, 10, 4], [2, 2], [10, 9, 7], [6], [4, 0, 1, 3]]
    encoder, together = new(kind), ask(*histories)
    alone = [ask(history) for history in histories]
    np.testing.assert_allclose(encoder.encode(together), np.concatenate([encoder.encode(q) for q in alone]), atol=1e-5)
    scores = np.concatenate([encoder.score_all(q) for q in alone])
    np.testing.assert_allclose(encoder.score_all(together), scores, atol=1e-5)


def test_shapes_and_types(kind):
    encoder = new(kind).train()
    vectors, scores = encoder.encode(ask([1], [2, 3])), encoder.score_all(ask([1], [2, 3]))
    assert (vectors.shape, vectors.dtype, scores.shape, scores.dtype) == ((2, 8), np.float32, (2, N_ITEMS), np.float32)
    assert np.isfinite(scores).all()
    assert encoder.training
    assert encoder.encode(ask()).shape == (0, 8)
    assert encoder.score_all(ask()).shape == (0, N_ITEMS)


def test_an_empty_history_and_one_of_unknown_items_are_the_same(kind):
    empty, unknown, other = new(kind).encode(ask([], UNKNOWN, [1]))
    np.testing.assert_allclose(empty, unknown, atol=1e-6)
    assert np.abs(empty - other).max() > 1e-3


def test_the_last_known_items_count(kind):
    long, cut, other = new(kind).encode(ask([9, 1, 2, 0, 3, 6, 4], [1, 2, 3, 4], [2, 3, 4]))
    np.testing.assert_allclose(long, cut, atol=1e-6)
    assert np.abs(long - other).max() > 1e-3


def test_unknown_items_score_just_below_the_lowest(kind):
    scores = new(kind).score_all(ask([1, 3], []))
    lowest = np.delete(scores, UNKNOWN, 1).min(1)
    assert (scores[:, UNKNOWN] == np.nextafter(lowest, np.float32(-np.inf))[:, None]).all()


def test_saved_and_loaded_it_answers_the_same(kind, tmp_path):
    encoder, queries = new(kind), ask([1, 3], [], [10])
    encoder.save(Folder.at(str(tmp_path)))
    loaded = load_encoder(Folder.at(str(tmp_path)))
    assert loaded.kind == kind
    assert loaded.settings == encoder.settings
    np.testing.assert_array_equal(loaded.score_all(queries), encoder.score_all(queries))


def test_an_unfinished_encoder_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="no finished encoder"):
        load_encoder(Folder.at(str(tmp_path)))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="Got 3"):
        new("sasrec", heads=3)


def test_full_softmax_is_the_log_share_of_the_target():
    table = torch.tensor([[0.0], [1.0], [2.0]])
    loss = softmax_loss(torch.tensor([[1.0], [2.0]]), table, torch.tensor([1, 0]), None)
    shares = np.exp([1, 0]) / np.exp([[0, 1, 2], [0, 2, 4]]).sum(1)
    assert loss.item() == pytest.approx(-np.log(shares).sum(), rel=1e-6)


def test_a_negative_that_is_the_target_does_not_count():
    table, hidden, targets = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0])
    loss = softmax_loss(hidden, table, targets, torch.tensor([1, 2, 2]))
    first = np.exp(1) / (np.exp(1) + 2 * np.exp(2))  # 1 is its own target
    second = 1 / (1 + np.exp(2) + 2 * np.exp(4))
    assert loss.item() == pytest.approx(-np.log([first, second]).sum(), rel=1e-6)


def test_the_first_item_is_a_target_only_where_the_user_begins():
    batch = Batch(torch.tensor([[2, 3, 4], [5, 6, -1]]), torch.tensor([True, False]))
    encoder = new("sasrec")
    shown, wanted = encoder.exercise(batch, torch.Generator())
    assert shown.tolist() == [[8, 2, 3], [8, 5, 6]]
    assert wanted.tolist() == [[2, 3, 4], [-1, 6, -1]]
    assert encoder.loss(batch, torch.Generator())[1] == 4


def test_masked_items_are_the_targets():
    batch = Batch(torch.tensor([[2, 3, 4, 5]] * 200 + [[6, 7, -1, -1]] * 200), torch.ones(400, dtype=torch.bool))
    shown, wanted = new("bert4rec", mask_share=0.25).exercise(batch, torch.Generator().manual_seed(0))
    masked = shown == 9
    assert (shown[:, 0] == 8).all()
    assert (masked == (wanted >= 0)).all()
    assert masked.any(1).all()
    assert (torch.where(masked, wanted, shown)[:, 1:] == batch.items).all()
    # Three of four items are masked by chance alone, in 80 % of the rows.
    assert masked[:200, 1:4].float().mean().item() == pytest.approx(0.8 * 0.25, abs=0.05)


def test_a_history_is_asked_with_a_mask_behind_it():
    tokens = new("bert4rec").question(torch.tensor([[2, 3], [4, -1], [-1, -1]]))
    assert tokens.tolist() == [[8, 2, 3, 9], [8, 4, 9, -1], [8, 9, -1, -1]]


def test_what_comes_later_is_not_seen_in_training():
    encoder = new("sasrec").eval()
    early, late = encoder(torch.tensor([[8, 1, 2, 3], [8, 1, 2, 7]]))
    np.testing.assert_allclose(early[:3].detach(), late[:3].detach(), atol=1e-6)
    assert isinstance(encoder, SASRec)
