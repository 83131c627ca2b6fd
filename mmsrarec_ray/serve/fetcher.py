"""Pictures that are put by their address, where the service is allowed to fetch them."""

from __future__ import annotations

import asyncio

from mmsrarec_ray.fetch import FetchError, FetchRules, FetchUnavailable, fetch_again, new_client
from mmsrarec_ray.serve.refusal import Refused
from mmsrarec_ray.settings import Serve


class Fetcher:
    """Of one ingress replica."""

    def __init__(self, settings: Serve):
        self._enabled, most = settings.fetch.enabled, settings.limits.picture_bytes
        rules = settings.fetch.model_dump(exclude={"enabled"})
        self._rules = FetchRules(max_bytes=most, content_type="image/", **rules)
        self._free = asyncio.Semaphore(self._rules.at_a_time)

    async def fetch(self, address: str) -> bytes:
        """The bytes of a picture, which need not be one. Raises Refused (422): `fetch_off`, `bad_address` where the
        address may not be asked or has no picture, `address_unavailable` where another time may be better."""
        if not self._enabled:
            raise Refused(422, "fetch_off", "image_uri: this service fetches no addresses; send the picture as image.")
        try:
            async with asyncio.timeout(self._rules.seconds), self._free, new_client(self._rules) as client:
                return await fetch_again(client, address, self._rules)
        except TimeoutError:
            wanted = f"image_uri: {address}: expected an answer within {self._rules.seconds:g} seconds"
            raise Refused(422, "address_unavailable", wanted) from None
        except FetchUnavailable as error:
            raise Refused(422, "address_unavailable", f"image_uri: {error}") from None
        except FetchError as error:
            raise Refused(422, "bad_address", f"image_uri: {error}") from None
