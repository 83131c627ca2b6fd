"""Pictures as models and people see them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmsrarec_ray.data.images import ImageLimits, load_image

LIMITS = ImageLimits(1_000_000, 1_000_000)


def loaded(picture: Image.Image, encoding: str, **how: object) -> Image.Image:
    content = io.BytesIO()
    picture.save(content, encoding, **how)
    found = load_image({"image": content.getvalue(), "image_uri": None}, LIMITS, 64)
    assert found is not None
    return found


def test_a_photo_stands_the_right_way_up() -> None:
    """A telephone held upright writes the picture lying on its side, and that it has to be turned."""
    lying = Image.new("RGB", (60, 30), "white")
    lying.paste("black", (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it clockwise
    upright = loaded(lying, "JPEG", exif=exif)
    assert upright.size == (30, 60)
    assert upright.getpixel((15, 5)) < (50, 50, 50)
    assert upright.getpixel((15, 50)) > (200, 200, 200)


@pytest.mark.parametrize(("encoding", "kind"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32)])
def test_a_grey_picture_of_16_bits_keeps_its_greys(encoding: str, kind: type) -> None:
    greys = np.array([[0, 20_000, 65_535]], kind)
    shown = np.asarray(loaded(Image.fromarray(greys), encoding))
    assert shown[0, :, 0].tolist() == [0, 78, 255]
    assert (shown[..., :1] == shown).all()
