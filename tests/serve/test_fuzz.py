"""Whatever is sent, the service answers, and never with a mistake of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsrarec_ray.serve.schemas import EventIn, EventsRequest, ItemIn, RecommendationRequest
from tests.serve.test_app import Served, serve  # noqa: F401 - the fixture

_WORDS = st.text(max_size=12) | st.sampled_from(
    ["i0", "i7", "ann", "new", "red", "interaction", "a\u0000b", "%2e%2e", "☃"]
)
_NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**63, 2**64, 10**40, 1e308])
_VALUES = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=8,
)


def _body(model: type, **known: st.SearchStrategy) -> st.SearchStrategy:
    """The model's fields with any value, or now and then a right one."""
    fields = {name: known.get(name, st.nothing()) | _VALUES for name in model.model_fields}  # type: ignore[attr-defined]
    return st.fixed_dictionaries({}, optional=fields) | _VALUES


_IDS = st.lists(st.sampled_from(["i0", "i1", "i5", "nobody"]), max_size=5)
_EVENT = _body(EventIn, event_id=_WORDS, user_id=_WORDS, item_id=_WORDS, kind=st.just("impression"))
_BODIES: dict[tuple[str, str], st.SearchStrategy] = {
    ("POST", "/v1/recommendations"): _body(
        RecommendationRequest, user_id=_WORDS, history=_IDS, candidates=_IDS, exclude=_IDS, k=st.integers(1, 9)
    ),
    ("POST", "/v1/events"): _body(EventsRequest, events=st.lists(_EVENT, max_size=3)),
    ("PUT", "/v1/items/{}"): _body(ItemIn, title=_WORDS, text=_WORDS),
    **{(method, f"/v1/{kind}/{{}}"): st.none() for method in ("GET", "DELETE") for kind in ("items", "users")},
    ("GET", "/v1/items/{}/picture"): st.none(),
    ("GET", "/v1/items?q={}&limit={}&offset={}"): st.none(),
    ("GET", "/v1/users?start={}&limit={}"): st.none(),
    ("GET", "/{}"): st.none(),
}


@st.composite
def requests(draw: Any) -> tuple[str, str, bytes | None]:
    (method, path), body = draw(st.sampled_from(list(_BODIES.items())))
    filled = path.format(*(quote(draw(_WORDS), safe="") for _ in range(path.count("{}"))))
    content = draw(body.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30)) if body else None
    return method, filled, content if method in ("POST", "PUT") else None


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests(), min_size=20, max_size=20))
def test_nothing_that_is_sent_makes_the_service_fail(serve: Callable[..., None], asked: list) -> None:  # noqa: F811
    async def scenario(s: Served) -> None:
        for method, path, content in asked:
            answer = await s.client.request(method, path, content=content)
            assert answer.status_code < 500, (method, path, content, answer.text)
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"code", "message", "details"}

    serve(scenario, "serve.summary_wait_ms=500")
