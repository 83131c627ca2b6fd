"""A client for programs: the routes as methods, answers as typed objects. It needs nothing but the standard library and
pydantic.

    client = Client("http://127.0.0.1:8000", key="…")
    answer = client.recommend(user_id="user-000042", k=5)
    client.tell(EventIn(event_id="e-1", user_id="user-000042", item_id=answer.items[0].item_id,
                        request_id=answer.request_id, rank=1, bundle=answer.bundle))
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from mmsrarec_ray.serve.schemas import (
    ErrorOut,
    EventIn,
    EventsAnswer,
    EventsRequest,
    ItemIn,
    ItemOut,
    ItemsPage,
    RecommendationRequest,
    Recommendations,
    UserDeleted,
    UserOut,
)


class ServiceError(Exception):
    """The service refused. status: of HTTP; code: for programs; retry_after: seconds, where it says after how many
    to come again."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None):
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.retry_after = status, code, message, retry_after


class Client:
    """Raises ServiceError where the service refuses, OSError where it cannot be reached."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 30.0):
        """url: without /v1; key: an API key; timeout: seconds."""
        self.url, self.timeout = url.rstrip("/"), timeout
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def recommend(
        self, user_id: str | None = None, history: Sequence[str] | None = None, k: int = 10, **more: Any
    ) -> Recommendations:
        """Either a user or a history, the newest item last. more: further fields of `RecommendationRequest`."""
        items = None if history is None else list(history)
        wish = RecommendationRequest(user_id=user_id, history=items, k=k, **more)
        return Recommendations.model_validate(self._call("POST", "recommendations", wish.model_dump()))

    def tell(self, *events: EventIn) -> EventsAnswer:
        """They are kept when this returns. Told again, they count once."""
        body = EventsRequest(events=list(events)).model_dump()
        return EventsAnswer.model_validate(self._call("POST", "events", body))

    def put_item(
        self,
        item_id: str,
        title: str | None = None,
        text: str | None = None,
        image: bytes | None = None,
        image_uri: str | None = None,
    ) -> ItemOut:
        """image: an encoded picture; image_uri: its address, where the service fetches such."""
        encoded = None if image is None else base64.b64encode(image).decode()
        body = ItemIn(title=title, text=text, image=encoded, image_uri=image_uri).model_dump()
        return ItemOut.model_validate(self._call("PUT", f"items/{quote(item_id)}", body))

    def item(self, item_id: str) -> ItemOut:
        return ItemOut.model_validate(self._call("GET", f"items/{quote(item_id)}"))

    def items(self, query: str = "", offset: int = 0, limit: int = 40) -> ItemsPage:
        """Items whose title and keywords hold all words of the query."""
        asked = urlencode({"q": query, "offset": offset, "limit": limit})
        return ItemsPage.model_validate(self._call("GET", f"items?{asked}"))

    def delete_item(self, item_id: str) -> None:
        self._call("DELETE", f"items/{quote(item_id)}")

    def user(self, user_id: str) -> UserOut:
        return UserOut.model_validate(self._call("GET", f"users/{quote(user_id)}"))

    def delete_user(self, user_id: str) -> UserDeleted:
        return UserDeleted.model_validate(self._call("DELETE", f"users/{quote(user_id)}"))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", content, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise _refused(error) from None


def _refused(error: urllib.error.HTTPError) -> ServiceError:
    content = error.read()
    code, message = _told(content) or ("http_error", content.decode(errors="replace")[:200])
    return ServiceError(error.code, code, message, _seconds(error.headers.get("Retry-After")))


def _told(content: bytes) -> tuple[str, str] | None:
    """Code and message of a refusal; None where it is not the service's: a proxy between answers as it likes."""
    try:
        problem = ErrorOut.model_validate_json(content).error
    except ValidationError:
        return None
    return problem.code, problem.message


def _seconds(wait: str | None) -> float | None:
    """Of a `Retry-After`, which may be a date as well: that is none."""
    return float(wait) if wait and wait.isdecimal() else None
