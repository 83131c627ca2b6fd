"""The shadow over a world worked out by hand: what it counts, and that nobody notices it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from mmsrarec_ray.serve.lanes import in_share
from mmsrarec_ray.serve.shadow import concordance, overlap
from tests.serve.test_app import Dead, Ranker, Served, serve  # noqa: F401 - the fixture

ALL = ("serve.shadow.pipeline=x", "serve.shadow.share=1")
WISH = {"history": ["i0", "i1"], "k": 3}


def shadow(s: Served) -> Ranker:
    return s.lanes["shadow"].ranker.replica


async def outcomes(s: Served, count: int) -> Counter[str]:
    """What became of so many answers that the shadow was told of; fails where it is told of more."""
    async with asyncio.timeout(10):
        while s.metrics.shadowed.total() < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert s.metrics.shadowed.total() == count
    return s.metrics.shadowed


@pytest.mark.parametrize(("likes", "agreement"), [(1.0, (1.0, 1.0)), (-1.0, (0.0, 0.0))])
def test_it_scores_the_same_candidates_and_changes_no_answer(
    serve: Callable[..., None],  # noqa: F811
    likes: float,
    agreement: tuple[float, float],
) -> None:
    answers: list[dict[str, Any]] = []

    async def ask(s: Served) -> None:
        answers.append(await s.recommend(**WISH))

    async def shadowed(s: Served) -> None:
        shadow(s).likes = likes
        await ask(s)
        assert await outcomes(s, 1) == {"compared": 1}
        assert s.metrics.compared == [agreement]
        models = (await s.client.get("/v1/models")).json()
        assert (models["shadow"], models["shadow_share"]) == ({"version": "v3"}, 1.0)

    serve(ask)
    serve(shadowed, *ALL)
    plain, followed = ({**answer, "request_id": "", "took_ms": 0} for answer in answers)
    assert plain == followed
    assert len(plain["items"]) == 3


@pytest.mark.parametrize("broken", ["slow", "dead", "full", "changing", "mistaken", "retriever", "unknown"])
def test_a_shadow_that_fails_is_counted_and_never_noticed(serve: Callable[..., None], broken: str) -> None:  # noqa: F811
    errors = {"dead": RayActorError(), "full": BackPressureError(1, 1), "mistaken": ValueError("ours")}
    expected = {"slow": "late", "full": "busy", "changing": "changing", "unknown": "unknown"}

    async def scenario(s: Served) -> None:
        first = await s.recommend(**WISH)
        assert await outcomes(s, 1) == {"compared": 1}
        shadow(s).seconds, shadow(s).error = (10.0 if broken == "slow" else 0.0), errors.get(broken)
        if broken == "changing":
            shadow(s).version = "v4"
        if broken == "retriever":
            s.lanes["shadow"].retriever.replica = Dead()
        if broken == "unknown":
            replica = s.lanes["shadow"].retriever.replica
            replica._finder.catalogue.gone.update(range(8))
        began = time.monotonic()
        again = await s.recommend(**WISH)
        assert time.monotonic() - began < 1.5
        assert (again["items"], again["degraded"]) == (first["items"], False)
        assert await outcomes(s, 2) == {"compared": 1, expected.get(broken, "down"): 1}
        assert (s.metrics.reasons, s.metrics.refusals) == ([None, None], {})

    serve(scenario, *ALL, "serve.deadline_ms=2000")


def test_a_shadow_with_other_keywords_scores_all_that_the_first_bundle_found_by_its_own(
    serve: Callable[..., None],  # noqa: F811
) -> None:
    async def scenario(s: Served) -> None:
        for number in range(8):
            s.lanes["shadow"].retriever.replica._finder.words.put(number, "other")
        assert len((await s.recommend(**WISH, keywords=["mug"]))["items"]) == 2
        assert await outcomes(s, 1) == {"compared": 1}

    serve(scenario, *ALL)


def test_a_busy_shadow_leaves_answers_out(serve: Callable[..., None]) -> None:  # noqa: F811
    async def scenario(s: Served) -> None:
        shadow(s).seconds = 3.0
        began = time.monotonic()
        await asyncio.gather(*(s.recommend(**WISH) for _ in range(7)))
        assert time.monotonic() - began < 2.5
        assert await outcomes(s, 7) == {"compared": 2, "dropped": 5}
        await s.recommend(**WISH)
        assert await outcomes(s, 8) == {"compared": 3, "dropped": 5}

    serve(scenario, *ALL, "serve.shadow.max_in_flight=2", "serve.deadline_ms=20000")


def test_it_is_told_of_its_share_of_the_answers_that_the_first_bundle_ranked(serve: Callable[..., None]) -> None:  # noqa: F811
    users = [f"user-{number}" for number in range(30)]
    ours = [user for user in users if in_share("shadow", user, 0.5) and not in_share("trial", user, 0.5)]

    async def scenario(s: Served) -> None:
        assert 0 < len(ours) < len(users) / 2
        for user in users:
            await s.recommend(user_id=user)
        assert await outcomes(s, len(ours)) == {"compared": len(ours)}
        assert shadow(s).asked == len(ours)
        await s.recommend(user_id=ours[0], ranked=False)
        s.ranker.seconds = 10.0
        assert (await s.recommend(user_id=ours[0], deadline_ms=50))["degraded"]
        await outcomes(s, len(ours))

    serve(
        scenario, "serve.shadow.pipeline=x", "serve.shadow.share=0.5", "serve.trial.pipeline=y", "serve.trial.share=0.5"
    )


def test_agreement_of_two_orders() -> None:
    scores = [0.9, 0.5, 0.1]
    assert concordance(scores, [3, 2, 1]) == 1
    assert concordance(scores, [1, 2, 3]) == 0
    assert concordance(scores, [3, 1, 2]) == pytest.approx(2 / 3)
    assert concordance(scores, [2, 2, 1]) == pytest.approx(2.5 / 3)  # a tie counts half
    assert concordance(scores, [1, 1, 1]) == 0.5
    assert overlap(["a", "b"], ["c", "b", "a"]) == 0.5
    assert overlap(["a", "b"], ["b", "a", "c"]) == 1
    assert overlap([], ["a"]) == 1
