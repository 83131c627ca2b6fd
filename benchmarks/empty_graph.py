"""The service's path with nothing on it: an ingress of FastAPI that hands each request to a deployment, which answers.

    serve run --address local benchmarks.empty_graph:build

What a request through it takes is what Ray Serve takes for two hops; benchmarks/serve.py measures it as `nothing`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

PATH = "/v1/recommendations"


class Nothing:
    """Answers at once."""

    async def find(self, wish: dict[str, Any]) -> dict[str, Any]:
        return wish


def create_app(nothing: Any) -> FastAPI:
    """nothing: a handle of Ray Serve, or what stands for one."""
    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post(PATH)
    async def find(wish: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = await nothing.find.remote(wish)
        return found

    return app


@serve.ingress()
class _Ingress:
    def __init__(self, nothing: Any):
        self._app = create_app(nothing)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


def build(args: dict[str, Any]) -> serve.Application:
    """The application. args: none."""
    cpus = {"num_cpus": 0.1}
    nothing = serve.deployment(name="Nothing", ray_actor_options=cpus)(Nothing).bind()
    return serve.deployment(name="Ingress", ray_actor_options=cpus)(_Ingress).bind(nothing)
