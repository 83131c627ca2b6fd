"""What goes over HTTP, under /v1: requests, answers and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mmsrarec_ray.serve.store import Status
from mmsrarec_ray.settings import Limits

# The least strict bounds that any service has; `check_*` in `limits` hold the configured ones.
PRINTED = r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$"  # importers take off space around an id
Id = Annotated[str, StringConstraints(min_length=1, pattern=PRINTED)]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]  # which PostgreSQL does not keep
_MILLISECONDS = 2**53  # what JavaScript counts to


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Asked(_Body):
    """What is sent to the service: nothing is taken for what it is not, such as "yes" for true."""

    model_config = ConfigDict(strict=True)


class RecommendationRequest(_Asked):
    """Either a user or an anonymous history, the oldest item first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "user-000042", "k": 5, "keywords": ["red"]},
                {"history": ["item-00012", "item-00345"], "k": 5},
                {"user_id": "user-000042", "candidates": ["item-00001", "item-00002"], "k": 2},
            ]
        }
    )

    user_id: Id | None = None
    """A user of the catalogue's log, or one known from events, or a new one."""
    history: list[Id] | None = None
    """Items of somebody without an id, the newest last."""
    k: Annotated[int, Field(ge=1)] = 10
    """How many items to answer with, at most."""
    candidates: list[Id] | None = None
    """Rank these alone; by default what retrieval finds, without what the user has."""
    exclude: list[Id] = []
    """Items that must not be found."""
    keywords: Annotated[list[str], Field(max_length=20)] = []
    """Find only items that have all of these keywords."""
    ranked: bool = True
    """false: the order of retrieval, without the ranker."""
    deadline_ms: Annotated[int, Field(ge=1)] | None = None
    """Wait for the ranker until then; never longer than the service's own deadline."""


class CompanionOut(_Body):
    """An item of the history, and how often users chose the recommended item soon after it."""

    item_id: str
    title: str
    count: int


class WhyOut(_Body):
    """What speaks for an item."""

    keywords: list[str]
    """Shared with items of the history that the ranker reads."""
    liked: list[str]
    """Keywords that users of the same segments like more than all users do; none where the bundle has no segments."""
    similar_users: int
    """Of the users at the most similar moments, so many chose it next."""
    of: int
    """How many users these are."""
    history: list[CompanionOut]
    """Items of the history that users chose it after."""


class Recommended(_Body):
    item_id: str
    title: str
    keywords: list[str]
    rank: int
    """1 is the best."""
    score: float
    """By the ranker: p(yes), between 0 and 1. Where it did not rank, by retrieval: to be compared within the answer."""
    source: Literal["similar_users", "cooccurrence", "keywords", "popularity"]
    """What speaks most for the item among those who find candidates."""
    why: WhyOut


class Recommendations(_Body):
    request_id: str
    """To be named in events that follow from this answer."""
    bundle: str
    """Version of keywords, index and adapter."""
    ranked: bool
    """By the ranker; else this is the order of retrieval."""
    degraded: bool
    """The ranker was asked for, and was late or down."""
    degraded_reason: Literal["late", "down", "busy", "changing", "unfit"] | None
    """`changing`: retriever and ranker do not know the same at the moment; `unfit`: the question is too long for the
    model."""
    known_user: bool
    """Whether the bundle's log has the user."""
    history: list[str]
    """The items that the ranker read, the newest last."""
    unknown: list[str]
    """Candidates that the catalogue does not have."""
    took_ms: float
    items: list[Recommended]


class EventIn(_Asked):
    """Something a user did or was shown. The same event may be sent again: it counts once."""

    event_id: Id
    kind: Literal["interaction", "impression"] = "interaction"
    user_id: Id
    item_id: Id
    timestamp: Annotated[int, Field(ge=0, le=_MILLISECONDS)] | None = None
    """Milliseconds since 1970; null: now, and so is what is later."""
    weight: Annotated[float, Field(allow_inf_nan=False)] | None = None
    request_id: Id | None = None
    """Of the answer that it follows from; so the next two."""
    rank: Annotated[int, Field(ge=1, le=_MILLISECONDS)] | None = None
    bundle: Id | None = None


class EventsRequest(_Asked):
    """All are kept, or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"events": [{"event_id": "e-1", "user_id": "user-000042", "item_id": "item-00012"}]}]
        }
    )

    events: Annotated[list[EventIn], Field(min_length=1)]


class EventsAnswer(_Body):
    accepted: int
    """How many were new."""
    repeated: int
    """How many were known by their id."""


class ItemIn(_Asked):
    """At least a title, a text or a picture."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"title": "Stoneware mug", "text": "Dishwasher safe. By Acme."}]}
    )

    title: Text | None = None
    text: Text | None = None
    image: str | None = None
    """An encoded picture (PNG, JPEG, WebP), in base64."""
    image_uri: Text | None = None
    """Instead, where it lies on the web: it is fetched once, where the service allows the host."""


class ItemOut(_Body):
    item_id: str
    title: str
    text: str
    keywords: list[str]
    status: Status
    """`ready`: it can be recommended. `waiting`: for its keywords. `failed`: see error."""
    error: str | None


class ItemsPage(_Body):
    items: list[ItemOut]
    total: int


class HistoryItem(_Body):
    item_id: str
    title: str
    keywords: list[str]


class UserOut(_Body):
    user_id: str
    known_user: bool
    """Whether the bundle's log has the user."""
    history: list[HistoryItem]
    """The newest first."""


class UsersPage(_Body):
    users: list[str]


class UserDeleted(_Body):
    user_id: str
    events: int
    """How many events were forgotten."""


class Models(_Body):
    bundle: dict[str, Any]
    trial: dict[str, Any] | None
    """The bundle that answers `trial_share` of the users, if there is one."""
    trial_share: float
    shadow: dict[str, Any] | None
    """The bundle that scores the answers of `shadow_share` of the users again, unseen, if there is one."""
    shadow_share: float
    limits: Limits
    deadline_ms: int
    candidates: int


class Ready(_Body):
    ready: bool
    parts: dict[str, bool]


class Problem(_Body):
    code: str
    """For programs."""
    message: str
    """For people: what was expected and what came."""
    details: list[dict[str, Any]] = []


class ErrorOut(_Body):
    error: Problem
