"""Services of several nodes on one store, and what they answer while it is away."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.databases import PASSWORD, PostgresServer, RedisServer, Server
from tests.serve.test_app import Served, served


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of an empty store, by way of the environment."""
    if isinstance(server, PostgresServer):
        monkeypatch.setenv("STORE", server.database(request.node.name.partition("[")[0][-50:]))
    else:
        assert isinstance(server, RedisServer)
        monkeypatch.setenv("STORE", server.database(0))
    return "env:STORE"


def told(number: int, **more: Any) -> dict[str, Any]:
    return {"events": [{"event_id": f"e{number}", "user_id": "new", "item_id": f"i{number}"} | more]}


def test_what_one_node_accepts_the_next_request_to_another_knows(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(one: Served, other: Served) -> None:
        for turn, (here, there) in enumerate([(one, other), (other, one)]):
            assert (await here.client.post("/v1/events", json=told(turn))).json()["accepted"] == 1
            assert (await there.client.post("/v1/events", json=told(turn))).json() == {"accepted": 0, "repeated": 1}
            answer = await there.recommend(user_id="new")
            assert answer["history"] == [f"i{each}" for each in range(turn + 1)]
        made = await one.client.put("/v1/items/new", json={"title": "Mug"})
        assert made.json()["status"] == "ready"
        assert await other.ids(history=["i0"], k=1) == ["new"]
        assert (await other.client.delete("/v1/items/i3")).status_code == 204
        assert "i3" not in await one.ids(history=["i0"], k=8)
        await one.client.delete("/v1/users/ann")
        assert not (await other.recommend(user_id="ann"))["known_user"]

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await scenario(*[await stack.enter_async_context(served(monkeypatch, url)) for _ in range(2)])

    asyncio.run(main())


def test_without_the_store_a_client_is_told_to_come_again(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(s: Served, method: str, path: str, body: Any = None) -> None:
        began = time.monotonic()
        answer = await s.client.request(method, path, json=body)
        assert time.monotonic() - began < 5
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
        assert answer.json()["error"]["code"] == "store_unavailable"
        assert str(server.port) not in answer.text

    async def main() -> None:
        async with served(monkeypatch, url, "serve.retry_after_s=2") as s:
            assert (await s.client.post("/v1/events", json=told(1))).status_code == 200
            server.kill()
            try:
                await refused(s, "POST", "/v1/events", told(2))
                await refused(s, "POST", "/v1/recommendations", {"user_id": "new"})
                await refused(s, "PUT", "/v1/items/x", {"title": "Mug"})
                await refused(s, "DELETE", "/v1/users/new")
                ready = await s.client.get("/readyz")
                assert (ready.status_code, ready.json()["parts"]["store"]) == (503, False)
                assert (await s.client.get("/healthz")).status_code == 200  # nothing would be gained by its end
            finally:
                await asyncio.to_thread(server.start)
            end = time.monotonic() + 10
            while (await s.client.get("/readyz")).status_code != 200:
                assert time.monotonic() < end
            assert (await s.client.post("/v1/events", json=told(2))).json()["accepted"] == 1
            assert (await s.recommend(user_id="new"))["history"] == ["i1", "i2"]
            made = await s.client.put("/v1/items/x", json={"title": "Mug"})
            assert made.json()["status"] == "ready"  # the summariser has outlived it

    asyncio.run(main())
    assert PASSWORD not in caplog.text
    assert f"127.0.0.1:{server.port}" in caplog.text
