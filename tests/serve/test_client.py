"""What the client makes of refusals, whoever refuses: the service, Ray Serve or a proxy between."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmsrarec_ray.serve.client import Client, ServiceError
from tests.conftest import Page, Web


def refused(web: Web, body: bytes, **headers: str) -> ServiceError:
    page = Page(body, status=503, headers={name.replace("_", "-"): value for name, value in headers.items()})
    web.put("/v1/items/x", page)
    with pytest.raises(ServiceError) as told:
        Client(web.root).item("x")
    assert told.value.status == 503
    return told.value


def test_a_refusal_of_the_service_says_why_and_when_to_come_again(web: Web) -> None:
    problem = {"code": "unavailable", "message": "not now", "details": []}
    told = refused(web, json.dumps({"error": problem}).encode(), Retry_After="2")
    assert (told.code, told.retry_after) == ("unavailable", 2.0)
    assert "not now" in str(told)


@pytest.mark.parametrize(
    "body",
    [
        {"error": "upstream"},
        {"error": None},
        {"error": {"message": "x"}},
        {"error": {"code": 7, "message": "x"}},
        {"error": {"code": "x", "message": ["x"]}},
        ["error"],
        "<html>Bad gateway</html>",
    ],
)
def test_what_is_no_refusal_of_the_service_is_told_as_it_came(web: Web, body: Any) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    told = refused(web, content.encode())
    assert (told.code, told.retry_after) == ("http_error", None)
    assert content in str(told)


@pytest.mark.parametrize("wait", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-1", ""])
def test_a_time_to_come_again_that_is_no_number_of_seconds_is_none(web: Web, wait: str) -> None:
    assert refused(web, b"Request queue full", Retry_After=wait).retry_after is None
