"""vLLM as stages of Ray Data: the same for every job that asks a model in bulk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.load import engine_arguments, engine_environment, source

ERROR = "__inference_error__"
"""The column in which ray.data.llm says why a row failed; '' where it did not."""


def asked(config: Config, answer: Callable[[dict[str, Any]], dict[str, Any]], **engine: Any) -> Callable[[Any], Any]:
    """From a dataset of requests to one of answers.

    Requests hold `tokenized_prompt`, `multimodal_data` and `sampling_params`: prompts arrive as tokens and pictures
    decoded, so of ray.data.llm only the engine stage is left. With `model`, a folder, a request is answered by that
    adapter. answer: what is kept of each row. engine: further arguments of vLLM's engine.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    settings = config.engine
    bundle = {"CPU": settings.cpus, "GPU": 1 if settings.gpus else 0}
    off = {"enabled": False}
    processor = vLLMEngineProcessorConfig(
        model_source=source(config.model),
        engine_kwargs=engine_arguments(config, **engine),
        runtime_env={"env_vars": engine_environment(config)},
        concurrency=settings.concurrency,
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
    return build_processor(processor, postprocess=answer)


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
    """Raises ConfigError where the cluster has fewer logical CPUs than a stage's actors hold. Ray must be connected."""
    import ray

    there = ray.cluster_resources().get("CPU", 0)
    if there < needed:
        raise ConfigError(
            f"the actors of {stage} hold {needed:g} logical CPUs and the cluster has {there:g}: it would wait for "
            f"ever. Set ray.num_cpus={needed:g} or more, or start the cluster with `ray start --head --num-cpus=…`."
        )
