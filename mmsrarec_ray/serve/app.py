"""The HTTP interface: routes, keys, limits and errors around the service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mmsrarec_ray import __version__
from mmsrarec_ray.serve import schemas
from mmsrarec_ray.serve.fetcher import Fetcher
from mmsrarec_ray.serve.keys import Keys
from mmsrarec_ray.serve.limits import check_events, check_id, check_item, check_picture, check_recommendation, decoded
from mmsrarec_ray.serve.metrics import Metrics, gathered
from mmsrarec_ray.serve.middleware import BodyLimit, Headers, Hosts
from mmsrarec_ray.serve.pictures import Pictures
from mmsrarec_ray.serve.refusal import Refused
from mmsrarec_ray.serve.service import Service, not_found, stored_item
from mmsrarec_ray.serve.store import StoreUnavailable

_LOG = logging.getLogger("ray.serve")
PAGE = Path(__file__).parent / "page"
_BEARER = HTTPBearer(auto_error=False, description="An API key, where the service asks for one.")
_CODES = {404: "not_found", 405: "method_not_allowed"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorOut} for status in (401, 404, 413, 421, 422, 429, 503)
}
_HEADERS = {
    # Nothing but what this service sends is run or shown; base64 pictures are those being dropped.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ItemId = Annotated[str, PathParameter(min_length=1, pattern=schemas.PRINTED, examples=["item-00012"])]
UserId = Annotated[str, PathParameter(min_length=1, pattern=schemas.PRINTED, examples=["user-000042"])]


def create_app(service: Service, pictures: Pictures, keys: Keys) -> FastAPI:
    """The application of one ingress replica."""
    app = FastAPI(
        title="mmsrarec_ray",
        version=__version__,
        description="Recommendations that people can read.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )

    def allowed(write: bool) -> Callable[..., Awaitable[None]]:
        # async although it waits for nothing: FastAPI would ask a thread, which takes longer than the check.
        async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
            keys.check(given.credentials if given else None, write)

        return check

    for routes, write in ((_reading(service, pictures), False), (_writing(service, pictures), True)):
        app.include_router(routes, prefix="/v1", dependencies=[Depends(allowed(write))], responses=_ERRORS)
    app.include_router(_operating(service))
    _show_page(app)
    errors = _Errors(service.metrics)
    _handle_errors(app, errors, service.settings.retry_after_s)
    app.add_middleware(BodyLimit, most=service.settings.limits.body_bytes, refuse=errors.refused)
    if keys.anybody_reads:
        app.add_middleware(Hosts, hosts=service.settings.hosts, refuse=errors.refused)
    app.add_middleware(Headers, more=_HEADERS)  # the last is the outermost
    return app


def _show_page(app: FastAPI) -> None:
    """A route for each file: a folder at `/` would take what other routes must refuse, such as a wrong method."""
    for file in PAGE.iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_route(path, partial(_sent, file), include_in_schema=False)


async def _sent(file: Path, request: Request) -> FileResponse:
    return FileResponse(file)


def _reading(service: Service, pictures: Pictures) -> APIRouter:
    routes, limits = APIRouter(), service.settings.limits

    @routes.post("/recommendations", summary="Recommend")
    async def recommend(request: schemas.RecommendationRequest, after: BackgroundTasks) -> schemas.Recommendations:
        check_recommendation(request, limits)
        service.metrics.asked()
        with service.requests.place():
            return await service.recommend(request, after)

    @routes.get("/items", summary="Find items by words of their title and keywords")
    async def items(
        q: Annotated[str, Query(max_length=200)] = "",
        offset: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 40,
    ) -> schemas.ItemsPage:
        return await service.items(q, offset, limit)

    picture_type: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}

    @routes.get(
        "/items/{item_id:path}/picture",
        summary="An item's picture, small",
        response_class=Response,
        responses=picture_type,
    )
    async def picture(item_id: ItemId) -> Response:
        check_id(item_id, limits)
        with service.thumbnails.place():
            content = await pictures.thumbnail(item_id, await service.version(item_id))
        if content is None:
            raise not_found("picture of item", item_id)
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    @routes.get("/items/{item_id:path}", summary="An item")
    async def item(item_id: ItemId) -> schemas.ItemOut:
        check_id(item_id, limits)
        return await service.item(item_id)

    @routes.get("/users", summary="Users of the catalogue's log")
    async def users(
        start: Annotated[str, Query(max_length=1_000)] = "", limit: Annotated[int, Query(ge=1, le=200)] = 50
    ) -> schemas.UsersPage:
        return await service.users(start, limit)

    @routes.get("/users/{user_id:path}", summary="What is known of a user")
    async def user(user_id: UserId) -> schemas.UserOut:
        check_id(user_id, limits)
        return await service.user(user_id)

    @routes.get("/models", summary="What is live")
    async def models() -> schemas.Models:
        settings = service.settings
        return schemas.Models(
            bundle=service.main.bundle,
            trial=service.trial.bundle if service.trial else None,
            trial_share=settings.trial.share if service.trial else 0.0,
            shadow=service.shadow.lane.bundle if service.shadow else None,
            shadow_share=settings.shadow.share if service.shadow else 0.0,
            limits=limits,
            deadline_ms=settings.deadline_ms,
            candidates=settings.candidates,
        )

    return routes


def _writing(service: Service, pictures: Pictures) -> APIRouter:
    routes, limits, fetcher = APIRouter(), service.settings.limits, Fetcher(service.settings)

    async def picture_of(item: schemas.ItemIn) -> bytes | None:
        if item.image_uri:
            content = await fetcher.fetch(item.image_uri)
            await pictures.in_turn(check_picture, content, limits)
            return content
        return await pictures.in_turn(decoded, item.image, limits) if item.image else None

    @routes.post("/events", summary="Tell what users did or were shown")
    async def events(request: schemas.EventsRequest) -> schemas.EventsAnswer:
        check_events(request.events, limits)
        return await service.add_events(request.events)

    waiting: dict[int | str, dict[str, Any]] = {
        202: {"model": schemas.ItemOut, "description": "It has no keywords yet"}
    }

    @routes.put("/items/{item_id:path}", summary="Add an item, or change one", responses=waiting)
    async def put_item(item_id: ItemId, item: schemas.ItemIn, response: Response) -> schemas.ItemOut:
        check_id(item_id, limits)
        check_item(item, limits)
        with service.requests.place():
            content = await picture_of(item)
            await service.put_item(item_id, item.title, item.text, content)
        stored = await service.summarised(item_id)  # which is no work of this replica's
        response.status_code = 202 if stored.status == "waiting" else 200
        return stored_item(stored)

    @routes.delete("/items/{item_id:path}", summary="Never show an item again", status_code=204)
    async def delete_item(item_id: ItemId) -> None:
        check_id(item_id, limits)
        await service.delete_item(item_id)

    @routes.delete("/users/{user_id:path}", summary="Forget a user")
    async def delete_user(user_id: UserId) -> schemas.UserDeleted:
        check_id(user_id, limits)
        return await service.delete_user(user_id)

    return routes


def _operating(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz", summary="This process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="The service can answer", responses={503: {"model": schemas.Ready}})
    async def readyz(response: Response) -> schemas.Ready:
        parts = await service.ready()
        ready = parts["store"] and parts["retriever"]
        response.status_code = 200 if ready else 503
        return schemas.Ready(ready=ready, parts=parts)

    @routes.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def metrics() -> str:
        return await asyncio.to_thread(gathered)

    return routes


class _Errors:
    """Answers of errors: all have the same form, and are counted."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def refused(self, error: Refused) -> JSONResponse:
        return self.answer(error.status, error.code, error.message, headers=error.headers)

    def answer(
        self, status: int, code: str, message: str, details: Sequence[Any] = (), headers: Any = None
    ) -> JSONResponse:
        self._metrics.refused(code)
        body = schemas.ErrorOut(error=schemas.Problem(code=code, message=message, details=list(details)))
        return JSONResponse(body.model_dump(), status, headers)


def _handle_errors(app: FastAPI, errors: _Errors, retry_after_s: int) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return errors.refused(error)

    @app.exception_handler(StoreUnavailable)
    async def unavailable(request: Request, error: StoreUnavailable) -> JSONResponse:
        _LOG.warning("%s", error)  # where the store lies is not for whoever asks
        headers = {"Retry-After": str(retry_after_s)}
        return errors.answer(503, "store_unavailable", "the store does not answer; send it again.", headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # Neither the input nor pydantic's context: a history has no place in an error, nor in whatever logs it.
        details = [{name: each[name] for name in ("loc", "msg", "type")} for each in error.errors()]
        where = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details)
        return errors.answer(422, "invalid", where, details)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return errors.answer(500, "internal", "the service made a mistake; its log has the details.")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # a body that is not even text
            return errors.answer(422, "invalid", str(error.detail))
        code = _CODES.get(error.status_code, "http_error")
        headers = {"Allow": _methods(request)} if error.status_code == 405 else error.headers
        return errors.answer(error.status_code, code, str(error.detail), headers=headers)


def _methods(request: Request) -> str:
    """How the path may be asked. Starlette would name the methods of one route, and a path may have several."""
    there = (route for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL)
    return ", ".join(sorted({method for route in there for method in route.methods}))
