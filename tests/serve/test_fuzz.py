"""Whatever is sent, the service answers as its description says, and never with a mistake of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    positive_data_acceptance,
    unsupported_method,
)

from mmsrarec_ray.serve.app import create_app
from mmsrarec_ray.serve.keys import Keys
from tests.programs import free_port
from tests.serve import world
from tests.serve.test_app import LIMITS, Served, serve, served  # noqa: F401 - `serve` is a fixture

_STEADY = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

_KEY, _KEYS = "fuzz", ("serve.write_keys_env=FUZZ_KEYS", "serve.read_keys_env=FUZZ_KEYS")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the application over HTTP, in a loop of its own."""
    port, store = free_port(), tmp_path_factory.mktemp("fuzz") / "store.sqlite"
    started: list[uvicorn.Server] = []

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FUZZ_KEYS", _KEY)
            async with served(patch, f"sqlite://{store}", *LIMITS, *_KEYS, "serve.summary_wait_ms=500") as s:
                server = uvicorn.Server(uvicorn.Config(s.app, port=port, lifespan="off", log_level="warning"))
                started.append(server)
                await server.serve()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    while not (started and started[0].started):
        thread.join(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{port}"
    started[0].should_exit = True
    thread.join(20)


def described() -> dict[str, Any]:
    """The description; what the routes call is not asked for it."""
    serving = world.config(*LIMITS).serve
    return create_app(SimpleNamespace(settings=serving, metrics=None), None, Keys(serving)).openapi()  # type: ignore[arg-type]


# Further parameters are nobody's business, and requests have a key, but for those that shall be refused without.
_GENERATED = {"generation": {"allow-extra-parameters": False, "with-security-parameters": False}}
# /metrics tells what nodes of Ray count, and there are none: tests/serve/test_http.py asks for it.
schema = schemathesis.openapi.from_dict(described(), config=SchemathesisConfig.from_dict(_GENERATED)).exclude(
    path="/metrics"
)


@schema.parametrize()
@settings(max_examples=30, **_STEADY)
def test_every_answer_is_as_described(url: str, case: schemathesis.Case) -> None:
    # The description holds the least strict limits that any service has: what is within them may still be too much.
    left_out = [positive_data_acceptance]
    if case.path.endswith("/picture"):  # as the id of an item may, which can be put and deleted
        left_out += [unsupported_method, allow_header_conformance]
    key = {"Authorization": f"Bearer {_KEY}"}
    case.call_and_validate(base_url=url, headers=key, excluded_checks=left_out)


# What no description can say: numbers beyond JSON, halves of characters, bodies that are no JSON, paths that are none.
_ODD = st.sampled_from([float("nan"), float("inf"), -float("inf"), 2**64, 10**40, 1e308, "\ud800", "a\u0000b", []])
_FIELDS = {
    "/v1/recommendations": ("user_id", "history", "k", "candidates", "exclude", "keywords", "deadline_ms"),
    "/v1/events": ("event_id", "user_id", "item_id", "timestamp", "weight", "rank"),
    "/v1/items/x": ("title", "text", "image", "image_uri"),
}
_RIGHT: dict[str, Any] = {"user_id": "ann", "event_id": "e", "item_id": "i0", "title": "Mug"}
_PATHS = st.lists(
    st.sampled_from(["%ff", "%00", "%2e%2e", "..", "%25", "☃", "a", "%0d%0a", "/", "?", "v1"]), max_size=5
)


@st.composite
def requests(draw: Any) -> tuple[str, str, bytes | None]:
    if draw(st.booleans()):
        prefix = draw(st.sampled_from(["/", "/v1/items/", "/v1/users/", "/v1/items?q=", "/v1/users?start="]))
        return draw(st.sampled_from(["GET", "DELETE", "HEAD"])), prefix + "".join(draw(_PATHS)), None
    path = draw(st.sampled_from(list(_FIELDS)))
    fields = {name: _ODD | st.just(_RIGHT.get(name)) for name in _FIELDS[path]}
    body = draw(st.fixed_dictionaries({}, optional=fields))
    body = {"events": [body]} if path == "/v1/events" else body
    content = draw(st.just(json.dumps(body).encode()) | st.binary(max_size=30))
    return "PUT" if "items" in path else "POST", path, content


@settings(max_examples=15, **_STEADY)
@given(st.lists(requests(), min_size=20, max_size=20))
def test_nothing_that_is_sent_makes_the_service_fail(serve: Callable[..., None], asked: list) -> None:  # noqa: F811
    async def scenario(s: Served) -> None:
        for method, path, content in asked:
            answer = await s.client.request(method, path, content=content)
            assert answer.status_code < 500, (method, path, content, answer.text)
            if answer.status_code >= 400 and method != "HEAD":
                assert set(answer.json()["error"]) == {"code", "message", "details"}

    serve(scenario, "serve.summary_wait_ms=500")
