"""Pictures: found, checked and decoded within limits. One bad picture never costs more than its own row."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps
from pyarrow import fs as pafs

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Pillow's names of formats whose size is known before anything is decoded: an ICO, for one, is not."""
WEB_ADDRESS = r"(?i)^https?://"  # a picture that has to be fetched before it can be read


class ImageError(ValueError):
    """A picture that cannot be used."""


class UnreadableImage(ImageError):
    """Not a picture, damaged, or of an unknown format."""


class ImageTooLarge(ImageError):
    """Over the limit of bytes or of pixels."""


class ImageNotFetched(ImageError):
    """A picture on the web: it has to be fetched first."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may have at most, encoded bytes and pixels, before it is decoded."""

    max_bytes: int
    max_pixels: int


def read_image(item: Mapping[str, Any], limits: ImageLimits) -> bytes | None:
    """The encoded picture of an item (`image`: bytes, or `image_uri`: an absolute path or URI), None without one.

    Raises FileNotFoundError where the URI leads nowhere, ImageTooLarge, or ImageNotFetched for a web address.
    """
    content = item["image"]
    if content is None and item["image_uri"]:
        content = _read_uri(item["image_uri"], limits)
    if not content:
        return None
    if len(content) > limits.max_bytes:
        raise ImageTooLarge(f"expected at most {limits.max_bytes} bytes, got {len(content)}")
    return content


def _read_uri(uri: str, limits: ImageLimits) -> bytes:
    if re.match(WEB_ADDRESS, uri):
        raise ImageNotFetched(f"{uri} is a web address that was not fetched")
    try:
        parts = urlsplit(uri)
        if parts.netloc:
            filesystem, bucket = _filesystem(parts._replace(path="").geturl())
            path = bucket + unquote(parts.path)
        else:
            filesystem, path = pafs.FileSystem.from_uri(uri)
    except (ValueError, pa.ArrowNotImplementedError) as error:
        raise UnreadableImage(f"{uri!r} is neither an absolute path nor a URI that can be opened") from error
    with filesystem.open_input_stream(path, compression=None) as stream:
        return stream.read(limits.max_bytes + 1)  # one more tells too large without reading all


@lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a bucket: to open one takes longer than to read a picture."""
    return pafs.FileSystem.from_uri(root)


def check_image(content: bytes, limits: ImageLimits) -> None:
    """Check a picture by its header alone. Raises UnreadableImage or ImageTooLarge."""
    with _open(content, limits):
        return


def _open(content: bytes, limits: ImageLimits) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
        try:
            picture = Image.open(io.BytesIO(content), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageTooLarge(f"expected at most {limits.max_pixels} pixels: {error}") from None
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise UnreadableImage(f"expected an encoded picture, got {len(content)} bytes: {error}") from None
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(f"expected at most {limits.max_pixels} pixels, got {width} x {height}")
    return picture


def load_image(item: Mapping[str, Any], limits: ImageLimits, long_side: int) -> Image.Image | None:
    """An item's picture in RGB, the right way up, transparent parts white, shrunk to `long_side` pixels.

    None without one, or where it lies on the web and was not fetched. Raises FileNotFoundError or ImageError.
    """
    try:
        content = read_image(item, limits)
    except ImageNotFetched:
        return None
    if content is None:
        return None
    with _open(content, limits) as picture:
        picture.draft("RGB", (long_side, long_side))  # a JPEG need not be decoded in full to be shrunk
        try:
            picture.load()
            picture = _on_white(_eight_bits(ImageOps.exif_transpose(picture)))
        except Exception as error:  # as above
            raise UnreadableImage(f"the picture is damaged: {error}") from None
    picture.thumbnail((long_side, long_side), Image.Resampling.BICUBIC)
    return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits with 8: Pillow would cut off what is above 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")
