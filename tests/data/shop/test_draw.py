"""The pictures of the drawn shop show what they are meant to show, and depend on nothing else."""

import numpy as np
import pytest

from mmsrarec_ray.data.shop.draw import SIZE, draw_picture, item_picture
from mmsrarec_ray.data.shop.law import COLOURS, KINDS, PATTERNS, SETTINGS, draw_shop


def picture(seed=0, kind="mug", colour="red", pattern="plain", setting="studio"):
    image, silhouette = draw_picture(np.random.default_rng(seed), kind, colour, pattern, setting)
    return np.asarray(image).astype(float), silhouette


def object_pixels(pixels, silhouette):
    return pixels[silhouette == 1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_whole_and_large_enough_in_every_setting(kind):
    for seed, setting in enumerate(SETTINGS * 4):
        image, silhouette = draw_picture(np.random.default_rng(seed), kind, "blue", "plain", setting)
        assert image.mode == "RGB"
        assert image.size == (SIZE, SIZE)
        assert silhouette.shape == (SIZE, SIZE)
        assert 0 <= silhouette.min() < silhouette.max() <= 1
        assert 0.05 < silhouette.mean() < 0.6
        edge = np.concatenate([silhouette[0], silhouette[-1], silhouette[:, 0], silhouette[:, -1]])
        assert edge.mean() < 0.1, "the object must not run out of the picture"


def test_kinds_have_different_outlines():
    outlines = {}
    for kind in KINDS:
        drawn = [picture(seed, kind=kind)[1] for seed in range(40)]
        outlines[kind] = np.mean(drawn, 0)
    for first in KINDS:
        for second in KINDS:
            if first < second:
                assert abs(outlines[first] - outlines[second]).mean() > 0.02, (first, second)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_body_has_its_colour_and_no_other(colour):
    """The named colour must be the nearest of all to what most of the body shows."""
    references = {
        other: np.median(
            np.concatenate([object_pixels(*picture(seed, "cushion", other)) for seed in range(100, 120)]), axis=0
        )
        for other in COLOURS
    }
    for seed in range(20):
        seen = np.median(object_pixels(*picture(seed, "cushion", colour)), axis=0)
        nearest = min(COLOURS, key=lambda other: np.linalg.norm(seen - references[other]))
        assert nearest == colour


def test_white_stands_out_from_the_studio():
    for seed in range(20):
        pixels, silhouette = picture(seed, "cushion", "white")
        ground, body = pixels[silhouette == 0], object_pixels(pixels, silhouette)
        assert np.median(body) - np.median(ground) > 12


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pattern_shows_against_its_colour(colour):
    """Grain and shading spread a plain body's pixels; every pattern spreads them far more."""

    def spread(pattern):
        bodies = [object_pixels(*picture(seed, "cushion", colour, pattern)) for seed in range(8)]
        return np.mean([np.abs(body - np.median(body, 0)).mean() for body in bodies])

    plain = spread("plain")
    for pattern in PATTERNS[1:]:
        assert spread(pattern) > 2 * plain, pattern


def test_patterns_cover_the_body_differently():
    """From the same generator state only the second colour's place differs, and by a lot, for each two patterns."""
    drawn = {pattern: picture(3, "cushion", "blue", pattern) for pattern in PATTERNS}
    for first in PATTERNS:
        for second in PATTERNS:
            if first < second:
                (a, silhouette), (b, _) = drawn[first], drawn[second]
                assert (abs(a - b).mean(-1)[silhouette == 1] > 60).mean() > 0.15, (first, second)


def test_the_same_generator_state_draws_the_same_picture_and_another_does_not():
    first, again, other = picture(1), picture(1), picture(2)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != other[0]).mean() > 0.5


def test_an_items_picture_depends_on_seed_and_index_alone():
    shop = draw_shop(5, 8)
    values = {name: shop.attributes[name][3] for name in ("kind", "colour", "pattern", "setting")}
    image, silhouette = item_picture(shop, 3)
    expected, mask = draw_picture(
        np.random.default_rng([5, 3, 3]),
        KINDS[values["kind"]],
        COLOURS[values["colour"]],
        PATTERNS[values["pattern"]],
        SETTINGS[values["setting"]],
    )
    assert image.tobytes() == expected.tobytes()
    assert (silhouette == mask).all()


@pytest.mark.parametrize("wrong", [{"kind": "boat"}, {"colour": "teal"}])
def test_an_unknown_word_is_refused(wrong):
    with pytest.raises(KeyError, match=next(iter(wrong.values()))):
        picture(**wrong)


@pytest.mark.parametrize("wrong", [{"pattern": "starred"}, {"setting": "moon"}])
def test_an_unknown_pattern_or_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        picture(**wrong)
