"""The graph of deployments: ingress → retriever and ranker, and the summariser of new items."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import engine_environment
from mmsrarec_ray.serve.app import create_app
from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.serve.deployments import RankerReplica, SummariserReplica, WaitingRetriever
from mmsrarec_ray.serve.keys import Keys
from mmsrarec_ray.serve.lanes import Lane
from mmsrarec_ray.serve.metrics import Metrics
from mmsrarec_ray.serve.pictures import Pictures
from mmsrarec_ray.serve.service import Service
from mmsrarec_ray.serve.store import check_store, open_store
from mmsrarec_ray.settings import Deployment, Replicas

_STICKY: Any = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_PREFIX = {"main": "", "trial": "Trial", "shadow": "Shadow"}


@serve.ingress()
class Ingress:
    """HTTP."""

    def __init__(
        self,
        bundles: dict[str, Bundle],
        store: str,
        handles: dict[str, list[DeploymentHandle]],
        summariser: DeploymentHandle,
    ):
        """bundles: `main` and, where there are such, `trial` and `shadow`; handles: retriever and ranker of each."""
        bundle = bundles["main"]
        config = bundle.config
        online = open_store(store)
        lanes = {name: Lane(config.serve, each.summary(), *handles[name]) for name, each in bundles.items()}
        beside = lanes.get("trial"), lanes.get("shadow")
        service = Service(config.serve, lanes["main"], *beside, online, summariser, Metrics())
        answering = [bundles[name].folder("dataset") for name in ("main", "trial") if name in bundles]
        datasets = {folder.path: folder for folder in answering}  # often one
        pictures = Pictures(config, list(datasets.values()), online)
        self._app = create_app(service, pictures, Keys(config.serve))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """The graph for `serve run … run=FOLDER key=value …` and for the `args` of a Serve config.

    arguments: `run`, the run folder; `pipeline`, the fingerprint of one of its pipelines, by default the newest; all
    others are settings of the configuration tree over those the recommender was made with, dotted or nested. Raises
    UsageError, and StoreUnavailable where the store is a server that does not answer.
    """
    words = dict(arguments)
    run, pipeline = words.pop("run", None), words.pop("pipeline", None)
    if not isinstance(run, str):
        raise ConfigError(f"run: expected the run folder, got {run!r}.")
    bundle = Bundle.of(run, _overrides(words), pipeline)
    settings = bundle.config.serve
    named = {"trial": settings.trial.pipeline, "shadow": settings.shadow.pipeline}
    beside = {name: Bundle.of(run, _overrides(words), other) for name, other in named.items() if other}
    bundles = {"main": bundle, **beside}
    for each in bundles.values():
        each.verify()
    Keys(settings)  # refused here, before anything starts
    store = settings.store or _own_store(bundle)
    check_store(store)  # and this
    return _bound(bundles, store)


def _bound(bundles: dict[str, Bundle], store: str) -> serve.Application:
    config = bundles["main"].config.serve
    handles = {name: _lane(each, store, _PREFIX[name]) for name, each in bundles.items()}
    summariser = _deployed(SummariserReplica, "Summariser", config.summariser, _light(config.summariser))
    busy = BackpressureConfig(status_code=429, retry_after_s=config.retry_after_s)
    ingress = _deployed(Ingress, "Ingress", config.ingress, _light(config.ingress), backpressure_config=busy)
    [_, ranker] = handles["main"]
    return ingress.bind(bundles, store, handles, summariser.bind(store, ranker))


def _lane(bundle: Bundle, store: str, prefix: str) -> list[serve.Application]:
    """Retriever and ranker of a bundle. prefix: of their names."""
    config = bundle.config.serve
    retriever = _deployed(WaitingRetriever, f"{prefix}Retriever", config.retriever, _light(config.retriever))
    sticky = RequestRouterConfig(request_router_class=_STICKY)
    engine = _engine(bundle.config)
    ranker = _deployed(RankerReplica, f"{prefix}Ranker", config.ranker, engine, request_router_config=sticky)
    bound = ranker.bind(bundle, store)
    return [retriever.bind(bundle, store, bound), bound]


def _deployed(replica: type, name: str, scaling: Replicas, actor: dict[str, Any], **more: Any) -> serve.Deployment:
    return serve.deployment(name=name, ray_actor_options=actor, **_scaled(scaling), **more)(replica)


def _scaled(scaling: Replicas) -> dict[str, Any]:
    """Options of a deployment that every one has."""
    autoscaling = AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=scaling.target_ongoing_requests,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
    )
    return {
        "autoscaling_config": autoscaling,
        "max_ongoing_requests": scaling.max_ongoing_requests,
        "max_queued_requests": scaling.max_queued_requests,
        "max_surge_percent": 100,  # a new bundle's replicas answer before the old one's go
        "health_check_period_s": scaling.health_check_period_s,
    }


def _light(deployment: Deployment) -> dict[str, Any]:
    return {"num_cpus": deployment.cpus}


def _engine(config: Config) -> dict[str, Any]:
    """What a replica with an engine asks Ray for."""
    engine = config.engine
    options: dict[str, Any] = {
        "num_cpus": engine.cpus,
        "num_gpus": engine.gpus,
        "runtime_env": {"env_vars": engine_environment(config)},
    }
    return options | ({"accelerator_type": engine.accelerator_type} if engine.accelerator_type else {})


def _own_store(bundle: Bundle) -> str:
    folder = bundle.parts["recommender"].folder
    if folder.scheme:
        raise ConfigError("serve.store: must be set where the run folder is not on a disk of this machine.")
    return f"sqlite://{bundle.run.rstrip('/')}/online/store.sqlite"


def _overrides(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key=value` words of a mapping, dotted or nested. The command line gives values as text, which is YAML."""
    words = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            words += _overrides(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words
