"""The HTTP interface over a world worked out by hand: no Ray, no engine."""

from __future__ import annotations

import asyncio
import base64
import io
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from PIL import Image
from ray.exceptions import RayActorError

from mmsrarec_ray.config import load
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.serve import app as apps
from mmsrarec_ray.serve import limits, pictures
from mmsrarec_ray.serve import service as services
from mmsrarec_ray.serve.app import create_app
from mmsrarec_ray.serve.deployments import RetrieverReplica, SummariserReplica
from mmsrarec_ray.serve.finder import Finder
from mmsrarec_ray.serve.keys import Keys
from mmsrarec_ray.serve.lanes import Lane, in_share
from mmsrarec_ray.serve.patience import Patience
from mmsrarec_ray.serve.pictures import Pictures
from mmsrarec_ray.serve.store import Store, StoreUnavailable, open_store
from mmsrarec_ray.store import Folder
from tests.programs import free_port
from tests.serve import world
from tests.serve.browser import CHROMIUM, Page, browser

SMALL = ("serve.limits.history=4", "serve.limits.k=12", "serve.limits.candidates=6", "serve.limits.events=3")
LIMITS = (*SMALL, "serve.limits.id_chars=20", "serve.limits.body_bytes=20000", "serve.limits.picture_bytes=10000")
Scenario = Callable[["Served"], Awaitable[None]]


class Answer:
    """As Ray Serve's DeploymentResponse."""

    def __init__(self, work: Awaitable[Any]):
        self.task = asyncio.ensure_future(work)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.task.__await__()

    def cancel(self) -> None:
        self.task.cancel()


class Handle:
    """As Ray Serve's handle of a replica."""

    def __init__(self, replica: Any):
        self.replica, self.sessions = replica, []

    def options(self, session_id: str) -> Handle:
        self.sessions.append(session_id)
        return self

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Answer(getattr(self.replica, name)(*given)))


class Ranker:
    """Likes high numbers. It may be slow, or broken."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.seconds, self.error, self.asked = 0.0, None, 0
        self.likes = 1.0  # -1: low numbers instead
        self.unfit = ""  # a candidate that no question fits
        self.keywords: Any = (["red"], ["mug"])

    async def score(
        self,
        bundle: str,
        history: Any,
        neighbours: Any,
        liked: Any,
        candidates: list[str],
        evidence: Any,
        position: int,
    ) -> Any:
        self.asked += 1
        if bundle != self.version:
            return "changing"
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        if self.unfit in candidates:
            return "unfit"
        return [self.likes * int(item[1:]) / 10 if item[1:].isdigit() else 0.95 for item in candidates]

    async def summarise(self, item: dict[str, Any]) -> tuple[list[str], list[str]]:
        if isinstance(self.keywords, Exception):
            raise self.keywords
        return self.keywords

    async def ready(self) -> bool:
        return True


class Dead:
    """A retriever whose process is gone, after a while."""

    def __init__(self, seconds: float = 0.0, error: Exception | None = None):
        self.seconds, self.error = seconds, error or RayActorError()

    async def find(self, *wished: Any) -> Any:
        await asyncio.sleep(self.seconds)
        raise self.error

    item = find


class Counted:
    """In place of Ray's metrics."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        self.wishes = 0
        self.refusals: Counter[str] = Counter()
        self.lags: list[float] = []
        self.shadowed: Counter[str] = Counter()
        self.compared: list[tuple[float, float]] = []

    def answered(self, bundle: str, seconds: float, scored: int, reason: str | None) -> None:
        self.reasons.append(reason)

    def asked(self) -> None:
        self.wishes += 1

    def refused(self, code: str) -> None:
        self.refusals[code] += 1

    def retrieved(self, bundle: str, seconds: float) -> None: ...

    def events(self, accepted: int, repeated: int, lags: Iterable[float]) -> None:
        self.lags += lags

    def item(self, status: str) -> None: ...

    def shadow(self, bundle: str, outcome: str) -> None:
        assert bundle == "v3"
        self.shadowed[outcome] += 1

    def shadow_compared(self, bundle: str, seconds: float, concordance: float, overlap: float) -> None:
        self.compared.append((concordance, overlap))


class Served:
    """The application, a client, and what stands behind it."""

    def __init__(self, client: httpx.AsyncClient, lanes: dict[str, Lane], store: Store, metrics: Counted, app: Any):
        self.client, self.lanes, self.store, self.metrics, self.app = client, lanes, store, metrics, app
        self.handle: Handle = lanes["main"].ranker
        self.ranker: Ranker = self.handle.replica

    async def recommend(self, **wish: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/recommendations", json=wish)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ids(self, **wish: Any) -> list[str]:
        return [item["item_id"] for item in (await self.recommend(**wish))["items"]]

    async def refused(self, status: int, method: str, path: str, **more: Any) -> dict[str, Any]:
        answer = await self.client.request(method, path, **more)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"code", "message", "details"}
        return error


def shown_in(folder: Path) -> Folder:
    """A dataset of which one item has a picture."""
    table = {"item_id": ["i0", "i1"], "image": [base64.b64decode(png()), None], "image_uri": [None, None]}
    (folder / "items").mkdir()
    pq.write_table(pa.table(table), folder / "items" / "part-0.parquet")
    return Folder.at(str(folder))


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch, url: str, *words: str) -> AsyncIterator[Served]:
    """An application with these settings on a store."""
    config = world.config(*words)
    settings, store, metrics = config.serve, open_store(url), Counted()

    def lane(version: str) -> Lane:
        monkeypatch.setattr(Finder, "load", lambda bundle: world.finder(*words, version=version))
        retriever = Handle(RetrieverReplica(None, url))  # type: ignore[arg-type]
        return Lane(settings, {"version": version}, retriever, Handle(Ranker(version)))

    named = {"trial": ("v2", settings.trial), "shadow": ("v3", settings.shadow)}
    lanes = {"main": lane("v1")} | {name: lane(version) for name, (version, of) in named.items() if of.pipeline}
    summariser = SummariserReplica.__new__(SummariserReplica)
    await SummariserReplica.__init__(summariser, url, lanes["main"].ranker)
    beside = lanes.get("trial"), lanes.get("shadow")
    service = services.Service(settings, lanes["main"], *beside, store, Handle(summariser), metrics)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as dataset:
        app = create_app(service, Pictures(config, [shown_in(Path(dataset))], store), Keys(settings))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            yield Served(client, lanes, store, metrics, app)
    summariser._loop.cancel()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario against an application with these settings."""

    def run(scenario: Scenario, *words: str) -> None:
        async def main() -> None:
            async with served(monkeypatch, f"sqlite://{tmp_path}/store.sqlite", *words) as each:
                await scenario(each)

        asyncio.run(main())

    return run


def png(size: int = 8) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_the_rankers_order_is_answered_with_scores_and_reasons(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        answer = await s.recommend(history=["i0", "i1"], k=3)
        assert [item["item_id"] for item in answer["items"]] == ["i7", "i6", "i5"]
        assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
        assert [item["score"] for item in answer["items"]] == [0.7, 0.6, 0.5]
        assert (answer["bundle"], answer["degraded"], answer["degraded_reason"]) == ("v1", False, None)
        assert answer["items"][1]["why"] == {
            "keywords": ["red"],
            "liked": [],
            "similar_users": 0,
            "of": 3,
            "history": [],
        }
        assert answer["history"] == ["i0", "i1"]
        assert s.metrics.reasons == [None]

    serve(scenario)


@pytest.mark.parametrize(
    ("broken", "reason"), [("slow", "late"), ("dead", "down"), ("full", "busy"), ("failed", "down")]
)
def test_without_the_ranker_the_order_of_retrieval_is_answered(
    serve: Callable[..., None], broken: str, reason: str
) -> None:
    from ray.serve.exceptions import BackPressureError

    async def scenario(s: Served) -> None:
        s.ranker.seconds = 10.0 if broken == "slow" else 0.0
        errors = {"dead": RayActorError(), "full": BackPressureError(1, 1), "failed": KeyError("i0")}
        s.ranker.error = errors.get(broken)  # the last: as gRPC hands on what a replica raised
        began = time.monotonic()
        answer = await s.recommend(history=["i0", "i1"], k=2)
        assert time.monotonic() - began < 2
        assert [item["item_id"] for item in answer["items"]] == ["i3", "i2"]
        assert (answer["degraded"], answer["degraded_reason"]) == (True, reason)
        assert s.metrics.reasons == [reason]

    serve(scenario, "serve.deadline_ms=200")


def test_who_cannot_wait_gets_the_order_of_retrieval(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        answer = await s.recommend(history=["i0", "i1"], k=2, deadline_ms=1)
        assert [item["item_id"] for item in answer["items"]] == ["i3", "i2"]
        assert (answer["degraded_reason"], s.ranker.asked) == ("late", 0)

    serve(scenario)


def test_wrong_methods_are_told_the_right_ones(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        for path, allowed in (("/v1/recommendations", "POST"), ("/v1/items/x", "DELETE, GET, PUT"), ("/", "GET, HEAD")):
            answer = await s.client.patch(path)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)

    serve(scenario)


def test_nothing_is_taken_for_what_it_is_not(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        for wrong in (
            {"ranked": "yes"},
            {"k": "3"},
            {"k": True},
            {"user_id": "a", "history": None, "deadline_ms": "1"},
        ):
            await s.refused(422, "POST", "/v1/recommendations", json={"user_id": "a"} | wrong)

    serve(scenario)


def test_a_ranker_that_is_down_is_not_waited_for_again_and_again(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.seconds = 10.0
        reasons = [(await s.recommend(history=["i0"]))["degraded_reason"] for _ in range(7)]
        assert reasons == ["late"] * 5 + ["down"] * 2
        assert s.ranker.asked == 5
        s.ranker.seconds = 0.0
        await asyncio.sleep(3.1)
        assert not (await s.recommend(history=["i0"]))["degraded"]

    serve(scenario, "serve.deadline_ms=600", "serve.ranker_pause_ms=3000")


def test_questions_that_do_not_fit_leave_the_ranker_to_others(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.unfit = "i7"
        reasons = [(await s.recommend(history=["i0"], candidates=["i7"]))["degraded_reason"] for _ in range(7)]
        assert reasons == ["unfit"] * 7
        assert not (await s.recommend(history=["i0"], candidates=["i6"]))["degraded"]

    serve(scenario)


def test_a_failing_retriever_or_summariser_is_no_mistake_of_ours(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.handle.replica.keywords = RuntimeError("as gRPC hands it on")
        answer = await s.client.put("/v1/items/new", json={"title": "Mug"})
        assert (answer.status_code, answer.json()["status"]) == (202, "waiting")
        s.lanes["main"].retriever.replica = Dead(error=KeyError("x"))
        assert (await s.refused(503, "POST", "/v1/recommendations", json={"user_id": "a"}))["code"] == "unavailable"

    serve(scenario)


def test_whoever_wants_no_ranker_gets_retrieval_at_once(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        answer = await s.recommend(history=["i0", "i1"], k=2, ranked=False)
        assert [item["item_id"] for item in answer["items"]] == ["i3", "i2"]
        assert (answer["ranked"], answer["degraded"], s.ranker.asked) == (False, False, 0)

    serve(scenario)


def test_a_ranker_of_another_bundle_is_not_mixed_in(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.version = "v2"
        answer = await s.recommend(history=["i0", "i1"], k=2)
        assert (answer["bundle"], answer["degraded_reason"]) == ("v1", "changing")
        assert [item["item_id"] for item in answer["items"]] == ["i3", "i2"]

    serve(scenario)


def test_a_share_of_the_users_is_answered_by_the_trial_always(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        users = [f"user-{number}" for number in range(40)]
        expected = {user: "v2" if in_share("trial", user, 0.3) else "v1" for user in users}
        assert set(expected.values()) == {"v1", "v2"}
        for _ in range(2):
            assert {user: (await s.recommend(user_id=user, k=1))["bundle"] for user in users} == expected
        answers = [(await s.recommend(history=["i0", *more]))["bundle"] for more in ([], ["i1"], ["i1", "i5"])]
        assert len(set(answers)) == 1
        await s.client.delete("/v1/items/i7")
        assert not [user for user in users if "i7" in await s.ids(user_id=user, k=8)]  # news reach both
        models = (await s.client.get("/v1/models")).json()
        assert (models["bundle"]["version"], models["trial"]["version"], models["trial_share"]) == ("v1", "v2", 0.3)

    serve(scenario, "serve.trial.pipeline=x", "serve.trial.share=0.3")


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_users_of_a_trial_that_is_gone_are_answered_by_the_first_bundle(
    serve: Callable[..., None], seconds: float
) -> None:
    async def scenario(s: Served) -> None:
        assert (await s.recommend(user_id="ann", k=2))["bundle"] == "v2"
        s.lanes["trial"].retriever.replica = Dead(seconds)
        answer = await s.recommend(user_id="ann", k=2)
        assert (answer["bundle"], answer["ranked"], len(answer["items"])) == ("v1", True, 2)
        assert not s.metrics.refusals

    serve(scenario, "serve.trial.pipeline=x", "serve.trial.share=1", "serve.deadline_ms=4000")


def test_a_share_of_the_users_is_a_share() -> None:
    users = [f"u{number}" for number in range(4_000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        assert sum(in_share("trial", user, share) for user in users) / len(users) == pytest.approx(share, abs=0.03)
    tenth = [user for user in users if in_share("trial", user, 0.1)]
    assert all(in_share("trial", user, 0.5) for user in tenth)  # a growing share keeps whom it has
    both = sum(in_share("shadow", user, 0.5) for user in tenth)
    assert both / len(tenth) == pytest.approx(0.5, abs=0.1)  # each purpose has its own


def test_after_a_pause_one_request_tries() -> None:
    patience = Patience(10.0)
    for now in (-3.0, -2.0, -1.0, 0.0, 1.0):
        assert patience.try_it(now)
        patience.failed(now)
    assert [patience.try_it(now) for now in (2.0, 11.5, 11.6, 22.0)] == [False, True, False, True]
    patience.succeeded()
    assert patience.try_it(22.1)


def test_a_users_requests_go_to_one_ranker(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        await s.recommend(user_id="ann")
        await s.recommend(user_id="ann", k=3)
        await s.recommend(history=["i0"])
        assert s.handle.sessions == ["ann", "ann", "i0"]

    serve(scenario)


def test_an_event_is_seen_by_the_users_next_request_and_counts_once(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        event = {"event_id": "e", "user_id": "new", "item_id": "i0", "timestamp": 5}
        shown = {"event_id": "s", "kind": "impression", "user_id": "new", "item_id": "i7", "rank": 1, "bundle": "v1"}
        for accepted in (2, 0):
            answer = await s.client.post("/v1/events", json={"events": [event, shown]})
            assert answer.json() == {"accepted": accepted, "repeated": 2 - accepted}
        answer = await s.recommend(user_id="new")
        assert (answer["history"], answer["known_user"]) == (["i0"], False)
        assert "i0" not in [item["item_id"] for item in answer["items"]]
        known = (await s.client.get("/v1/users/new")).json()
        assert [item["item_id"] for item in known["history"]] == ["i0"]

    serve(scenario)


def test_an_event_of_a_clock_that_is_ahead_happened_now(serve: Callable[..., None]) -> None:
    """Or it would outlive the deletion of its user in the next training."""

    async def scenario(s: Served) -> None:
        ahead = {"event_id": "a", "user_id": "ann", "item_id": "i5", "timestamp": int(time.time() * 1000) + 86_400_000}
        await s.client.post("/v1/events", json={"events": [ahead]})
        [(_, event)] = s.store.events()
        assert abs(event.timestamp - time.time() * 1000) < 60_000

    serve(scenario)


@pytest.mark.parametrize("id", [" ", "u ", "\u00a0u"])
def test_an_id_has_no_space_around_it(serve: Callable[..., None], id: str) -> None:
    """Importers take it off: another user's history would be deleted."""

    async def scenario(s: Served) -> None:
        assert (await s.client.delete(f"/v1/users/{quote(id)}")).status_code == 422
        event = {"event_id": "a", "user_id": id, "item_id": "i5"}
        assert (await s.client.post("/v1/events", json={"events": [event]})).status_code == 422
        assert (await s.client.delete("/v1/users/a%20user")).status_code == 200

    serve(scenario)


def test_it_is_counted_how_late_events_come(serve: Callable[..., None]) -> None:
    """Of those that say when they happened."""

    async def scenario(s: Served) -> None:
        event = {"event_id": "a", "user_id": "ann", "item_id": "i5"}
        late = event | {"event_id": "b", "timestamp": int(time.time() * 1000) - 90_000}
        await s.client.post("/v1/events", json={"events": [event, late]})
        [lag] = s.metrics.lags
        assert lag == pytest.approx(90, abs=10)

    serve(scenario)


def test_a_deleted_user_is_forgotten(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        await s.client.post("/v1/events", json={"events": [{"event_id": "e", "user_id": "ann", "item_id": "i5"}]})
        assert (await s.recommend(user_id="ann"))["history"] == ["i1", "i2", "i5"]
        assert (await s.client.delete("/v1/users/ann")).json() == {"user_id": "ann", "events": 1}
        answer = await s.recommend(user_id="ann")
        assert (answer["history"], answer["known_user"]) == ([], False)
        user = (await s.client.get("/v1/users/ann")).json()
        assert user == {"user_id": "ann", "known_user": False, "history": []}
        assert (await s.client.get("/v1/users")).json() == {"users": ["ben", "cat", "dan"]}

    serve(scenario)


def test_a_new_item_is_recommended_at_once_and_a_deleted_one_never_again(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        made = await s.client.put("/v1/items/shelf/9", json={"title": "Mug", "image": png()})
        assert made.status_code == 200
        assert (made.json()["status"], made.json()["keywords"]) == ("ready", ["red", "mug"])
        assert (await s.ids(history=["i0"], k=1)) == ["shelf/9"]
        assert (await s.client.get("/v1/items/shelf/9")).json() == made.json()
        assert (await s.client.delete("/v1/items/shelf/9")).status_code == 204
        for item in ("i3", "i7"):
            assert (await s.client.delete(f"/v1/items/{item}")).status_code == 204
        assert not {"shelf/9", "i3", "i7"} & set(await s.ids(history=["i0"], k=5))
        answer = await s.recommend(history=["i0"], candidates=["shelf/9", "i3", "i2"])
        assert [item["item_id"] for item in answer["items"]] == ["i2"]
        assert answer["unknown"] == ["shelf/9", "i3"]
        await s.refused(404, "GET", "/v1/items/shelf/9")
        await s.refused(404, "GET", "/v1/items/i3")

    serve(scenario)


def test_what_is_deleted_while_the_ranker_thinks_is_not_answered(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.seconds = 0.3
        thinking = asyncio.create_task(s.ids(history=["i0", "i1"], k=5))
        await asyncio.sleep(0.1)
        await s.client.delete("/v1/items/i7")
        assert await thinking == ["i6", "i5", "i4", "i3", "i2"][: len(thinking.result())]
        assert "i7" not in thinking.result()

    serve(scenario)


def test_an_item_that_cannot_be_read_says_why(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.keywords = ValueError("the prompt has 9 tokens too many")
        made = (await s.client.put("/v1/items/x", json={"title": "Mug"})).json()
        assert (made["status"], made["error"]) == ("failed", "ValueError: the prompt has 9 tokens too many")
        assert "x" not in await s.ids(history=["i0"])

    serve(scenario)


def test_an_item_that_changes_while_it_is_read_is_read_again(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        began, go_on, titles = asyncio.Event(), asyncio.Event(), []

        async def summarise(item: dict[str, Any]) -> tuple[list[str], list[str]]:
            titles.append(item["title"])
            began.set()
            await go_on.wait()
            return [], [item["title"].lower()]

        s.ranker.summarise = summarise  # type: ignore[method-assign]
        first = asyncio.create_task(s.client.put("/v1/items/x", json={"title": "Mug"}))
        await began.wait()
        second = asyncio.create_task(s.client.put("/v1/items/x", json={"title": "Lamp"}))
        while (item := s.store.items(["x"]).get("x")) is None or item.title != "Lamp":
            await asyncio.sleep(0.01)
        go_on.set()
        for made in (await first, await second):
            assert (made.status_code, made.json()["keywords"]) == (200, ["lamp"])
        assert titles == ["Mug", "Lamp"]

    serve(scenario)


def test_a_store_that_is_slow_at_the_end_does_not_hold_the_answer(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(s: Served) -> None:
        monkeypatch.setattr(type(s.store), "hidden", lambda store, ids: time.sleep(5.0))
        began = time.monotonic()
        error = await s.refused(503, "POST", "/v1/recommendations", json={"history": ["i0"]})
        assert error["code"] == "store_unavailable"
        assert time.monotonic() - began < 3.5

    serve(scenario, "serve.deadline_ms=300")


def test_pictures_that_are_decoded_hold_nobody_else_up(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the threads that Ray Serve gives the event loop of an ingress."""
    done, decode = threading.Event(), pictures.load_image

    def slowly(*given: Any) -> Any:
        assert done.wait(60)
        return decode(*given)

    for module in (limits, pictures):
        monkeypatch.setattr(module, "load_image", slowly)
    monkeypatch.setattr(apps, "gathered", lambda: "counted")

    async def scenario(s: Served) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(5))
        for number in range(9):
            s.store.put_item(f"x{number}", "Mug", None, base64.b64decode(png()))
        paths = [f"/v1/items/{item}/picture" for item in ("i0", *(f"x{number}" for number in range(9))) for _ in "123"]
        asked = [asyncio.create_task(s.client.get(path)) for path in paths]
        asked += [asyncio.create_task(s.client.put("/v1/items/new", json={"image": png()}))]
        await asyncio.sleep(0.5)
        try:
            await s.recommend(history=["i0"])
            assert (await s.client.get("/readyz")).json()["parts"]["store"]
            assert (await s.client.get("/metrics")).text == "counted"
            assert not any(each.done() for each in asked)
        finally:
            done.set()
        assert {each.status_code for each in await asyncio.gather(*asked)} == {200}

    serve(scenario, "serve.deadline_ms=5000")


def test_an_item_waits_for_a_ranker_that_is_down_and_is_read_later(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.keywords = RayActorError()
        made = await s.client.put("/v1/items/x", json={"title": "Mug"})
        assert (made.status_code, made.json()["status"]) == (202, "waiting")
        s.ranker.keywords = (["red"], [])
        for _ in range(100):
            if (await s.client.get("/v1/items/x")).json()["status"] == "ready":
                return
            await asyncio.sleep(0.1)
        pytest.fail("nobody read it")

    serve(scenario)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "expected either user_id or history"),
        ({"user_id": "a", "history": []}, "expected either user_id or history"),
        ({"user_id": "a", "k": 13}, "expected at most 12 k, got 13"),
        ({"user_id": "a", "k": 0}, "body.k: Input should be greater than or equal to 1"),
        ({"history": ["i0"] * 5}, "expected at most 4 items of history, got 5"),
        ({"history": [], "candidates": ["i0"] * 7}, "expected at most 6 candidates, got 7"),
        ({"history": [], "candidates": []}, "expected at least one candidate"),
        ({"user_id": "a" * 21}, "expected at most 20 characters in an id, got 21"),
        ({"user_id": "a\u0000b"}, "body.user_id: String should match pattern"),
        ({"user_id": ""}, "body.user_id: String should have at least 1 character"),
        ({"user_id": 7}, "body.user_id: Input should be a valid string"),
        ({"user_id": "a", "secret": "s3cret"}, "body.secret: Extra inputs are not permitted"),
        ({"user_id": "a", "deadline_ms": 0}, "body.deadline_ms: Input should be greater"),
    ],
)
def test_a_wrong_wish_is_told_what_is_wrong(serve: Callable[..., None], body: dict[str, Any], said: str) -> None:
    async def scenario(s: Served) -> None:
        error = await s.refused(422, "POST", "/v1/recommendations", json=body)
        assert said in error["message"]
        assert "s3cret" not in str(error)

    serve(scenario, *LIMITS)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/items/x", {}, "expected a title, a text or a picture, got neither"),
        ("/v1/items/x", {"title": " "}, "expected a title, a text or a picture, got neither"),
        ("/v1/items/x", {"title": "a\u0000b"}, "body.title: String should match pattern"),
        ("/v1/items/x", {"image": "%%%"}, "image: expected an encoded picture in base64"),
        ("/v1/items/x", {"image": base64.b64encode(b"no picture").decode()}, "image: expected an encoded picture"),
        ("/v1/items/x", {"image": base64.b64encode(b"0" * 10_001).decode()}, "expected at most 10000 bytes, got 10001"),
        ("/v1/items/x", {"title": "t" * 1_001}, "expected at most 1000 characters in title, got 1001"),
        (
            "/v1/items/x",
            {"title": "t", "image_uri": "http://10.0.0.1/x"},
            "image_uri: this service fetches no addresses",
        ),
        ("/v1/items/x", {"image_uri": " "}, "expected a title, a text or a picture, got neither"),
        ("/v1/items/x", {"image": png(), "image_uri": "https://a/b"}, "expected either image or image_uri, got both"),
        ("/v1/items/x", {"image_uri": "h" * 2_001}, "expected at most 2000 characters in image_uri, got 2001"),
        (f"/v1/items/{'x' * 21}", {"title": "t"}, "expected at most 20 characters in an id, got 21"),
    ],
)
def test_a_wrong_item_is_told_what_is_wrong(
    serve: Callable[..., None], path: str, body: dict[str, Any], said: str
) -> None:
    async def scenario(s: Served) -> None:
        assert said in (await s.refused(422, "PUT", path, json=body))["message"]
        assert s.store.items(["x"]).get("x") is None

    serve(scenario, *LIMITS)


def test_a_bad_event_keeps_the_others_out_too(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        good = {"event_id": "e", "user_id": "u", "item_id": "i0"}
        wrong = ({"kind": "purchase"}, {"timestamp": -1}, {"user_id": "u" * 21}, {"weight": "heavy"})
        for bad in ({"event_id": "f"}, *(good | each for each in wrong)):
            await s.refused(422, "POST", "/v1/events", json={"events": [good, bad]})
        await s.refused(422, "POST", "/v1/events", json={"events": [good] * 4})
        await s.refused(422, "POST", "/v1/events", json={"events": []})
        assert s.store.events() == []

    serve(scenario, *LIMITS)


def test_a_long_body_is_refused_whether_it_says_so_or_not(serve: Callable[..., None]) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b"x" * 1_000

    async def scenario(s: Served) -> None:
        for content in (b"x" * 20_001, pieces()):
            error = await s.refused(413, "POST", "/v1/events", content=content)
            assert error["code"] == "body_too_large"
        await s.refused(413, "POST", "/v1/events", content=b"", headers={"Content-Length": "-1"})
        answer = await s.client.post("/v1/events", content=b"x" * 20_001)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for content in (b"not JSON", b"\xff"):
            await s.refused(422, "POST", "/v1/events", content=content)

    serve(scenario, *LIMITS)


def test_too_many_requests_are_told_to_come_again(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        s.ranker.seconds = 0.3
        wishes = [s.client.post("/v1/recommendations", json={"history": ["i0"]}) for _ in range(5)]
        answers = await asyncio.gather(*wishes)
        busy = [answer for answer in answers if answer.status_code == 429]
        assert len(busy) == 3
        assert {answer.headers["Retry-After"] for answer in busy} == {"2"}
        assert busy[0].json()["error"]["code"] == "busy"
        assert (s.metrics.wishes, s.metrics.refusals) == (5, {"busy": 3})
        await s.recommend(history=["i0"])

    serve(scenario, "serve.max_in_flight=2", "serve.retry_after_s=2")


def test_thumbnails_take_no_place_of_recommendations(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, decode = threading.Event(), pictures.load_image
    monkeypatch.setattr(pictures, "load_image", lambda *given: done.wait(60) and decode(*given))

    async def scenario(s: Served) -> None:
        for number in range(3):
            s.store.put_item(f"x{number}", "Mug", None, base64.b64decode(png()))
        asked = [asyncio.create_task(s.client.get(f"/v1/items/x{number}/picture")) for number in range(3)]
        await asyncio.sleep(0.5)
        try:
            await s.recommend(history=["i0"])
        finally:
            done.set()
        answers = [await each for each in asked]
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429]

    serve(scenario, "serve.max_in_flight=1", "serve.max_thumbnails=2")


def test_an_item_has_the_keywords_that_recommendations_name(serve: Callable[..., None]) -> None:
    """The store's, until a bundle is made from the item as it is."""

    async def scenario(s: Served) -> None:
        async def keywords(title: str) -> list[str]:
            put = await s.client.put("/v1/items/i0", json={"title": title, "text": "text i0"})
            assert (put.status_code, put.json()["keywords"]) == (200, ["red", "mug", "new"])
            shown = (await s.client.get("/v1/items/i0")).json()
            assert (shown["title"], shown["status"]) == (title, "ready")
            recommended = (await s.recommend(history=["i1"], candidates=["i0"], k=1))["items"]
            assert recommended[0]["keywords"] == shown["keywords"]
            return shown["keywords"]

        s.ranker.keywords = (["red"], ["mug", "new"])
        assert await keywords("another title") == ["red", "mug", "new"]
        assert await keywords("title i0") == ["red", "mug"]

    serve(scenario)


def test_items_that_only_the_trial_has_are_shown(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(s: Served) -> None:
        async def nothing(item_id: str, position: int) -> None:
            return None

        monkeypatch.setattr(s.lanes["main"].retriever.replica, "item", nothing)
        assert (await s.client.get("/v1/items/i0")).json()["title"] == "title i0"
        await s.refused(404, "GET", "/v1/items/nothing")
        s.lanes["trial"].retriever.replica = Dead()
        await s.refused(404, "GET", "/v1/items/i0")

    serve(scenario, "serve.trial.pipeline=x")


def test_new_items_that_wait_for_keywords_take_nobodys_place(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        go_on = asyncio.Event()

        async def summarise(item: dict[str, Any]) -> tuple[list[str], list[str]]:
            await go_on.wait()
            return [], ["mug"]

        s.ranker.summarise = summarise  # type: ignore[method-assign]
        waiting = []
        for name in ("a", "b"):
            waiting.append(asyncio.create_task(s.client.put(f"/v1/items/{name}", json={"title": "Mug"})))
            while not s.store.items([name]):
                await asyncio.sleep(0.01)
        assert (await s.client.put("/v1/items/c", json={"title": "Mug"})).status_code == 202  # it is one too many
        await s.recommend(history=["i0"])
        assert not any(each.done() for each in waiting)
        go_on.set()
        assert [(await each).json()["keywords"] for each in waiting] == [["mug"]] * 2
        while (await s.client.get("/v1/items/c")).json()["status"] != "ready":
            await asyncio.sleep(0.1)

    serve(scenario, "serve.max_in_flight=1", "serve.max_waiting=2", "serve.summary_wait_ms=120000")


def test_every_error_is_counted_by_its_code(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(s: Served) -> None:
        wish = {"history": ["i0"]}
        await s.refused(404, "GET", "/v1/items/nothing")
        await s.refused(405, "POST", "/healthz")
        await s.refused(413, "POST", "/v1/events", content=b"x" * 20_001)
        await s.refused(422, "POST", "/v1/recommendations", json=wish | {"k": 0})
        s.lanes["main"].retriever.replica = Dead()
        await s.refused(503, "POST", "/v1/recommendations", json=wish)
        monkeypatch.setattr(s.store, "path", "/nowhere/store.sqlite")
        monkeypatch.setattr(s.store, "_local", threading.local())
        await s.refused(503, "POST", "/v1/recommendations", json=wish)
        monkeypatch.setattr(s.store, "position", lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):  # it is answered all the same, and the server logs it
            await s.client.post("/v1/recommendations", json=wish)
        once = ("not_found", "method_not_allowed", "body_too_large", "invalid", "unavailable", "store_unavailable")
        assert s.metrics.refusals == dict.fromkeys((*once, "internal"), 1)
        assert (s.metrics.wishes, s.metrics.reasons) == (3, [])

    serve(scenario, *LIMITS)


def test_writers_and_readers_need_their_keys(serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITERS", "w1, w2")
    monkeypatch.setenv("READERS", "r1")

    async def scenario(s: Served) -> None:
        wish, event = {"history": ["i0"]}, {"events": [{"event_id": "e", "user_id": "u", "item_id": "i0"}]}
        for path, body, keys in (("/v1/recommendations", wish, "r1 w1 w2"), ("/v1/events", event, "w1 w2")):
            for key in ("", "r1", "w1", "w2", "w1, w2", "x"):
                answer = await s.client.post(path, json=body, headers={"Authorization": f"Bearer {key}"} if key else {})
                assert answer.status_code == (200 if key in keys.split() else 401), (path, key)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "no_key"
        for method, path in (("DELETE", "/v1/items/i0"), ("DELETE", "/v1/users/ann"), ("PUT", "/v1/items/i0")):
            await s.refused(401, method, path, json={"title": "t"} if method == "PUT" else None)
        assert (await s.client.get("/healthz")).status_code == 200

    serve(scenario, "serve.write_keys_env=WRITERS", "serve.read_keys_env=READERS")


def test_without_keys_the_service_is_asked_by_its_own_names_alone(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of evil.example whose name stands for this machine asks with its own."""
    monkeypatch.setattr(apps, "gathered", lambda: "counted")

    async def scenario(s: Served) -> None:
        async def status(host: str, path: str = "/v1/models") -> int:
            return (await s.client.get(path, headers={"Host": host})).status_code

        ours = ("localhost", "LocalHost:8000", "127.0.0.1:80", "[::1]:8000", "[::1]", "shop.example", "shop.example:81")
        assert {await status(host) for host in ours} == {200}
        theirs = ("evil.example:80", "localhost.evil.example", "evil.example:x@localhost", "10.0.0.1", "")
        for host in theirs:
            for path in ("/", "/page.js", "/v1/models", "/openapi.json"):
                assert await status(host, path) == 421, (host, path)
        for probe in ("/healthz", "/readyz", "/metrics"):  # by the address of a pod
            assert await status("10.0.0.1:8000", probe) == 200
        event = {"events": [{"event_id": "e", "user_id": "u", "item_id": "i0"}]}
        foreign = {"Host": "evil.example"}
        error = await s.refused(421, "POST", "/v1/events", json=event, headers=foreign)
        assert (error["code"], s.store.events()) == ("wrong_host", [])
        assert s.metrics.refusals["wrong_host"] == 21

    serve(scenario, 'serve.hosts=["shop.example"]')


@pytest.mark.parametrize(("readers", "status"), [(True, 200), (False, 421)])
def test_where_reading_needs_a_key_the_service_is_asked_by_any_name(
    readers: bool, status: int, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITERS", "w1")
    monkeypatch.setenv("READERS", "r1")

    async def scenario(s: Served) -> None:
        headers = {"Host": "shop.example", "Authorization": "Bearer w1"}
        assert (await s.client.get("/v1/models", headers=headers)).status_code == status

    serve(scenario, "serve.write_keys_env=WRITERS", *(["serve.read_keys_env=READERS"] if readers else []))


@pytest.mark.parametrize("host", ["https://shop.example", "shop.example:80", "Shop.example", "", "*"])
def test_a_host_is_a_name_and_nothing_else(host: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.hosts"):
        load(None, ["data.format=shop", "run=/r", f'serve.hosts=["{host}"]'])


def test_a_lock_without_a_key_stays_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITERS", " , ")
    with pytest.raises(ConfigError, match=r"serve\.write_keys_env: expected API keys in .* WRITERS, got none"):
        Keys(world.config("serve.write_keys_env=WRITERS").serve)
    monkeypatch.setenv("READERS", "r")
    with pytest.raises(ConfigError, match=r"serve\.read_keys_env: .* set serve\.write_keys_env too"):
        Keys(world.config("serve.read_keys_env=READERS").serve)


def test_an_ingress_takes_more_than_it_works_on() -> None:
    with pytest.raises(ConfigError, match=r"serve\.ingress\.max_ongoing_requests: must be above"):
        load(None, ["data.format=shop", "run=/r", "serve.max_in_flight=80", "serve.max_waiting=48"])
    load(None, ["data.format=shop", "run=/r", "serve.max_in_flight=80", "serve.max_waiting=47"])


def test_health_readiness_models_and_descriptions(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        assert (await s.client.get("/healthz")).json() == {"status": "ok"}
        ready = (await s.client.get("/readyz")).json()
        assert ready == {"ready": True, "parts": {"store": True, "retriever": True, "ranker": True}}
        models = (await s.client.get("/v1/models")).json()
        assert (models["bundle"], models["limits"]["k"]) == ({"version": "v1"}, 100)
        assert (models["trial"], models["trial_share"]) == (None, 0)
        described = (await s.client.get("/openapi.json")).json()
        assert described["paths"]["/v1/recommendations"]["post"]["responses"].keys() >= {"200", "422", "429", "503"}
        assert described["components"]["schemas"]["RecommendationRequest"]["examples"]
        await s.refused(404, "GET", "/v1/nothing")
        await s.refused(405, "POST", "/healthz")

    serve(scenario)


def test_the_page_runs_nothing_but_its_own(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        page = await s.client.get("/")
        assert "text/html" in page.headers["Content-Type"]
        assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
        for file in ("page.js", "page.css"):
            assert file in page.text
            assert (await s.client.get(f"/{file}")).status_code == 200
        script = (await s.client.get("/page.js")).text
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in script
        picture = await s.client.get("/v1/items/i0/picture")
        assert (picture.headers["Content-Type"], picture.headers["X-Content-Type-Options"]) == ("image/png", "nosniff")
        await s.refused(404, "GET", "/v1/items/i1/picture")
        for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py"):
            assert (await s.client.get(path)).status_code == 404

    serve(scenario)


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


async def looked_at(s: Served, folder: Path, look: Callable[[Page, str], None]) -> None:
    """The page in a browser. folder: an empty one; look: gets a tab and the page's address, in a thread of its own."""

    def open_and_look(address: str) -> None:
        with browser(folder) as page:
            look(page, address)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(s.app, host="127.0.0.1", port=port, log_level="warning"))
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(open_and_look, f"http://127.0.0.1:{port}/")
    finally:
        server.should_exit = True
        await running


@needs_browser
def test_the_page_shows_everything_once_it_has_a_key(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WRITERS", "w1")
    monkeypatch.setenv("READERS", "r1")

    def look(page: Page, address: str) -> None:
        page.go(address)
        page.until("document.getElementById('key-box')?.open")
        assert page.value("document.images.length") <= 1, "the preview alone"
        page.value("document.getElementById('key').value = 'r1'")
        page.value("document.getElementById('key').dispatchEvent(new Event('change'))")
        page.until("document.querySelectorAll('#catalogue .tile').length > 5")
        page.until("document.querySelector('#catalogue img')?.naturalWidth > 0")
        page.until("document.querySelectorAll('#recommended > li').length > 0")
        assert page.value("document.getElementById('users').children.length") > 0
        page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
        inner, outer = (f"document.getElementById('{name}').getBoundingClientRect()" for name in ("drop-text", "drop"))
        assert page.value(f"{inner}.left > {outer}.left && {inner}.right < {outer}.right")

    async def scenario(s: Served) -> None:
        await looked_at(s, tmp_path / "browser", look)

    serve(scenario, "serve.write_keys_env=WRITERS", "serve.read_keys_env=READERS")


@needs_browser
def test_the_focus_stays_on_the_page_and_nothing_idle_has_it(serve: Callable[..., None], tmp_path: Path) -> None:
    def look(page: Page, address: str) -> None:
        def press(button: str) -> None:
            page.value(f"{button}.focus(); {button}.click()")

        def focus_is(where: str) -> None:
            page.until("/ms/.test(document.getElementById('status').textContent)")
            page.until(f"document.activeElement === {where}")

        page.go(f"{address}?user=ann")
        page.until("document.querySelectorAll('#recommended button').length > 2")
        page.until("document.querySelectorAll('#history li').length == 3")
        assert page.value("document.querySelectorAll('#history button').length") == 0
        for count in (4, 5):
            press("document.querySelectorAll('#recommended button')[1]")
            page.until(f"document.querySelectorAll('#history li').length == {count}")
            focus_is("document.querySelectorAll('#recommended button')[1]")
        page.value("document.querySelector('input[value=own]').click()")
        for count in (1, 2, 3):
            page.value(f"document.querySelectorAll('#catalogue button')[{count}].click()")
            page.until(f"document.querySelectorAll('#history button').length == {count}")
        for pressed, left, then in ((0, 2, 0), (1, 1, 0)):
            press(f"document.querySelectorAll('#history button')[{pressed}]")
            page.until(f"document.querySelectorAll('#history button').length == {left}")
            focus_is(f"document.querySelectorAll('#history button')[{then}]")
        press("document.querySelector('#history button')")
        page.until("document.querySelectorAll('#history button').length == 0")
        focus_is("document.getElementById('recommended')")
        assert [each for each in page.complaints if "/picture" not in each] == []  # most items have none

    async def scenario(s: Served) -> None:
        await looked_at(s, tmp_path / "browser", look)

    serve(scenario, "serve.deadline_ms=20000")


@needs_browser
def test_the_page_shows_the_last_search_and_says_what_fails(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    titles = "[...document.querySelectorAll('#catalogue .tile')].map(each => each.textContent.slice(-8)).join()"
    warned = "document.querySelector('#status.warn')?.textContent ?? ''"

    def search(page: Page, words: str) -> None:
        page.value(f"document.getElementById('search').value = '{words}'")
        page.value("document.getElementById('search').dispatchEvent(new Event('input'))")

    def look(page: Page, address: str, store: Store) -> None:
        page.go(f"{address}?user=ann")
        page.until("document.querySelectorAll('#catalogue .tile').length > 5")
        page.until("/ms/.test(document.getElementById('status').textContent)")
        search(page, "red")
        assert begun.wait(40)
        search(page, "blue")
        page.until(f"{titles} == 'title i2,title i4,title i5'")
        go_on.set()
        page.until("performance.getEntriesByType('resource').some(each => each.name.includes('q=red'))")
        page.value("new Promise(then => setTimeout(then, 500))")
        assert page.value(titles) == "title i2,title i4,title i5"
        search(page, "x" * 201)
        page.until(f"({warned}).includes('at most 200 characters')")
        search(page, "")
        page.value("document.getElementById('title').value = 'Mug'")
        page.value("document.querySelector('#add button').click()")
        page.until("document.querySelector('#added button') !== null")
        page.until("/ms/.test(document.getElementById('status').textContent)")
        with monkeypatch.context() as away:
            away.setattr(store, "delete_item", refuse)
            page.value("document.querySelector('#added button').click()")
            page.until(f"({warned}).includes('the store does not answer')")
        page.value("document.querySelector('#added button').click()")
        page.until("document.getElementById('added').textContent == 'Deleted.'")
        assert page.value("document.activeElement.id") == "recommended"

    def refuse(item_id: str) -> None:
        raise StoreUnavailable("it is away")

    async def scenario(s: Served) -> None:
        retriever = s.lanes["main"].retriever.replica
        answer = retriever.items

        async def items(query: str, *more: Any) -> Any:
            if query == "red":
                begun.set()
                await asyncio.to_thread(go_on.wait, 60)
            return await answer(query, *more)

        retriever.items = items
        await looked_at(s, tmp_path / "browser", lambda page, address: look(page, address, s.store))

    serve(scenario, "serve.deadline_ms=20000")


def test_items_are_listed_and_found(serve: Callable[..., None]) -> None:
    async def scenario(s: Served) -> None:
        page = (await s.client.get("/v1/items", params={"q": "red", "limit": 2})).json()
        assert ([item["item_id"] for item in page["items"]], page["total"]) == (["i0", "i1"], 3)
        item = (await s.client.get("/v1/items/i0")).json()
        assert item == {
            "item_id": "i0",
            "title": "title i0",
            "text": "text i0",
            "keywords": ["red", "mug"],
            "status": "ready",
            "error": None,
        }
        await s.refused(422, "GET", "/v1/items?limit=0")

    serve(scenario)
