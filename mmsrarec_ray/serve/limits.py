"""What a request may ask for: not too much, and nothing that cannot be read."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.serve.refusal import Refused
from mmsrarec_ray.serve.schemas import EventIn, ItemIn, RecommendationRequest
from mmsrarec_ray.settings import Limits

_ADDRESS_CHARS = 2_000
_THUMBNAIL = 32  # a picture is decoded this small to see that it can be


def check_recommendation(request: RecommendationRequest, limits: Limits) -> None:
    """Raises Refused."""
    if (request.user_id is None) == (request.history is None):
        raise Refused(422, "user_or_history", "expected either user_id or history, got both or neither.")
    _at_most("k", request.k, limits.k)
    _at_most("items of history", len(request.history or ()), limits.history)
    _at_most("candidates", len(request.candidates or ()), limits.candidates)
    _at_most("items of exclude", len(request.exclude), limits.candidates)
    if request.candidates is not None and not request.candidates:
        raise Refused(422, "no_candidates", "expected at least one candidate, got an empty list.")
    for each in (request.user_id or "", *(request.history or ()), *(request.candidates or ()), *request.exclude):
        check_id(each, limits)


def check_events(events: Sequence[EventIn], limits: Limits) -> None:
    """Raises Refused."""
    _at_most("events", len(events), limits.events)
    for event in events:
        for each in (event.event_id, event.user_id, event.item_id, event.request_id or "", event.bundle or ""):
            check_id(each, limits)


def check_id(value: str, limits: Limits) -> None:
    """Raises Refused."""
    _at_most("characters in an id", len(value), limits.id_chars)


def check_item(item: ItemIn, limits: Limits) -> None:
    """Raises Refused where title or text are too long, there is nothing at all, or a picture in two ways."""
    _at_most("characters in title", len(item.title or ""), limits.title_chars)
    _at_most("characters in text", len(item.text or ""), limits.text_chars)
    _at_most("characters in image_uri", len(item.image_uri or ""), _ADDRESS_CHARS)
    if item.image and item.image_uri:
        raise Refused(422, "image_or_address", "expected either image or image_uri, got both.")
    if not any(part and part.strip() for part in (item.title, item.text, item.image, item.image_uri)):
        raise Refused(422, "empty_item", "expected a title, a text or a picture, got neither.")


def decoded(image: str, limits: Limits) -> bytes:
    """The encoded picture that base64 holds. Raises Refused."""
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "bad_picture", "image: expected an encoded picture in base64.") from None
    check_picture(content, limits)
    return content


def check_picture(content: bytes, limits: Limits) -> None:
    """Decodes it once to see that it can be. Raises Refused."""
    try:
        load_image({"image": content}, ImageLimits(limits.picture_bytes, limits.picture_pixels), _THUMBNAIL)
    except ImageError as error:
        raise Refused(422, "bad_picture", f"image: {error}") from None


def _at_most(what: str, got: int, most: int) -> None:
    if got > most:
        raise Refused(422, "too_many", f"expected at most {most} {what}, got {got}.")
