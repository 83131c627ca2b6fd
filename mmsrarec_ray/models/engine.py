"""vLLM as stages of Ray Data: the same for every job that asks a model in bulk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import engine_arguments, engine_environment, source
from mmsrarec_ray.settings import Lora

ERROR = "__inference_error__"
"""The column in which ray.data.llm says why a row failed; '' where it did not."""

_STAGE, _ROWS = "vLLMEngineStage", "__data"
_SAID = re.compile(r"^(?:\((?P<who>\w+)[^)]*\) )?(?:ERROR [^\]]*\] )?(?P<error>[\w.]*(?:Error|Exception): .+)$")
_TAIL_BYTES = 1 << 18  # of a log: what an engine says last stands near its end
_PATIENCE_SECONDS = 60
_BATCHES_IN_BLOCK = 4


def rows_in_block(config: Config) -> int:
    """How many rows a block of requests should have at most. What is in one leaves the engine together, and several are
    in work at a time: with a slow model, of large ones none would be done, told of and kept for hours, and Ray Data
    gives up what makes no progress for half an hour."""
    return _BATCHES_IN_BLOCK * config.engine.batch_size


def asked(config: Config, answer: Callable[[dict[str, Any]], dict[str, Any]], **engine: Any) -> Callable[[Any], Any]:
    """From a dataset of requests to one of answers.

    Requests hold `tokenized_prompt`, `multimodal_data` and `sampling_params`: prompts arrive as tokens and pictures
    decoded, so of ray.data.llm only the engine stage is left. With `model`, a folder, a request is answered by that
    adapter. answer: what is kept of each row, which has what vLLM answered besides, or `ERROR` alone. engine: further
    arguments of vLLM's engine.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = config.engine
    # A bundle for each worker of tensor parallelism: together they hold what the engine asks for.
    bundle = {"CPU": settings.cpus / settings.tensor_parallel_size, "GPU": 1 if settings.gpus else 0}
    off = {"enabled": False}
    processor = vLLMEngineProcessorConfig(
        model_source=source(config.model),
        engine_kwargs=engine_arguments(config, **engine),
        runtime_env={"env_vars": engine_environment(config)},
        concurrency=(
            settings.concurrency,
            settings.concurrency,
        ),  # a number alone is the most of a pool that begins with 1
        batch_size=settings.batch_size,
        max_concurrent_batches=settings.max_concurrent_batches,
        accelerator_type=settings.accelerator_type,
        placement_group_config={"bundle_per_worker": bundle},
        should_continue_on_error=True,
        prepare_multimodal_stage=off,
        chat_template_stage=off,
        tokenize_stage=off,
        detokenize_stage=off,
    )
    stage = build_processor(processor).get_stage_by_name(_STAGE)
    # Left alone, Ray Data starts an engine that dies again and again.
    stage.map_batches_kwargs["max_restarts"] = settings.max_restarts
    arguments = stage.get_dataset_map_batches_kwargs(settings.batch_size, _ROWS)
    room = ray.data.ExecutionResources.for_limits(
        object_store_memory=settings.concurrency * settings.object_store_mib * 2**20
    )

    def ask(requests: ray.data.Dataset) -> ray.data.Dataset:
        # Left alone, Ray Data reads and decodes ahead until half of the object store is full.
        requests.context.execution_options.resource_limits = room
        # As ray.data.llm applies its stages: of arguments that are Ray Core's, the public method warns each time.
        return requests.map_batches_internal(_answering(stage.fn, answer), batch_format="pyarrow", **arguments)

    return ask


def _answering(engine: type, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> type:
    """The actor of an engine that takes a table of requests and gives answers alone.

    Left alone, ray.data.llm packs each request into one column in a task before, gives it out again with the answer,
    picture and tokens too, and unpacks it in a task behind.
    """

    # By this name `engines_heard` knows the actor.
    class vLLMEngineStageAnswers(engine):  # noqa: N801
        async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, list]]:
            async for done in super().__call__({_ROWS: batch.to_pylist()}):
                answers = [answer(row) for row in done[_ROWS]]
                yield {name: [each[name] for each in answers] for name in (answers[0] if answers else ())}

    return vLLMEngineStageAnswers


def adapter_arguments(lora: Lora) -> dict[str, Any]:
    """Arguments of an engine that answers with an adapter of this size."""
    return {"enable_lora": True, "max_lora_rank": lora.rank}


def require_folder(run: str, what: str) -> None:
    """Raises ConfigError where a run folder is no folder: vLLM reads adapters from disks that its machine sees."""
    if "://" in run:
        raise ConfigError(
            f"run: the engine of {what} reads its adapter from a folder that its machine sees. Got {run!r}."
        )


def engine_resources(config: Config) -> dict[str, Any]:
    """What asking in bulk takes, for a plan: engines, preprocessing actors and one reading task."""
    e = config.engine
    engines = f"{e.concurrency} engine(s) of {e.cpus:g} CPU and {e.gpus} GPU"
    return {"engines": engines, "CPU": engine_cpus(config), "GPU": e.concurrency * e.gpus}


def engine_cpus(config: Config) -> float:
    """Logical CPUs without which asking in bulk would wait for ever."""
    e = config.engine
    return e.concurrency * e.cpus + e.preprocess_concurrency + 1


def require_cpus(stage: str, needed: float) -> None:
    """Raises ConfigError where the cluster has fewer logical CPUs than a stage's actors hold. Ray must be connected.

    A cluster with an autoscaler (those of `ray up` and of KubeRay) may begin without any.
    """
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    there = ray.cluster_resources().get("CPU", 0)
    if there >= needed:
        return
    # Asked of this cluster by name: Ray's default client is global, and whatever else ran in this process may have
    # reset it.
    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    if not is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        raise ConfigError(
            f"the actors of {stage} hold {needed:g} logical CPUs and the cluster has {there:g}: it would wait for "
            f"ever. Set ray.num_cpus={needed:g} or more, or start the cluster with `ray start --head --num-cpus=…`."
        )


class EngineDied(RuntimeError):
    """An engine died more often than `engine.max_restarts` allows."""


@contextmanager
def engines_heard() -> Iterator[None]:
    """Around the work with `asked`: raises EngineDied with what the engine said where one has died for good.

    Ray tells only that an actor is gone; why stands in the logs of the engine's processes.
    """
    from ray.exceptions import RayActorError

    try:
        yield
    except RayActorError as error:
        if _STAGE not in str(error):
            raise
        raise EngineDied(
            f"an engine died and was not started again (engine.max_restarts). It said: {_last_words()} "
            "What is done is kept: the same command goes on from there."
        ) from error


def _last_words() -> str:
    """What engines of this Ray job wrote last when they died, on all nodes that can be asked."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    job, read = ray.get_runtime_context().get_job_id(), ray.remote(num_cpus=0)(_read_last_words)
    asked_nodes = [
        read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            str(Path(node["RayletSocketName"]).parents[1] / "logs"), job
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    ready, _ = ray.wait(asked_nodes, num_returns=len(asked_nodes), timeout=_PATIENCE_SECONDS)
    said = [words for each in ready for words in ray.get(each)]
    return max(said, default=(0.0, "nothing (look into the logs of its node)."))[1]


def _read_last_words(logs: str, job: str) -> list[tuple[float, str]]:
    """From the logs of a job's workers: when each was last written, and its last error.

    An error that the engine's own process wrote goes before what others wrote about its end.
    """
    found = []
    for file in Path(logs).glob(f"worker-*-{job}-*"):
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
        errors = [said for line in lines if (said := _SAID.match(line)) and said["who"]]
        own = [said["error"] for said in errors if said["who"] != "MainProcess"]
        if errors:
            found.append((file.stat().st_mtime, (own or [errors[-1]["error"]])[-1]))
    return found
