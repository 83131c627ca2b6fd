"""The one typed tree of settings: a YAML file, then `key=value` words, checked before anything starts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mmsrarec_ray.addresses import holds_password, names_secret, shown
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.settings import (
    Build,
    Data,
    Engine,
    Evaluate,
    Methods,
    Model,
    Plan,
    Rank,
    RaySettings,
    Retrieve,
    Serve,
    Settings,
    ShopSettings,
    Split,
    Summarize,
    Train,
    TuneRecommender,
    TuneSummarizer,
    Tuning,
)


class Config(Settings):
    """All settings of all jobs."""

    run: str
    """The run folder: an absolute path or a URI (s3://bucket/folder)."""
    data: Data
    split: Split = Split()
    shop: ShopSettings = ShopSettings()
    model: Model = Model()
    build: Build = Build()
    engine: Engine = Engine()
    summarize: Summarize = Summarize()
    train: Train = Train()
    retrieve: Retrieve = Retrieve()
    tune_summarizer: TuneSummarizer = TuneSummarizer()
    rank: Rank = Rank()
    tune_recommender: TuneRecommender = TuneRecommender()
    methods: Methods = Methods()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()
    plan: Plan = Plan()
    ray: RaySettings = RaySettings()


def load(file: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` words (values are YAML) and validate the whole.

    Raises ConfigError naming the dotted key, what was expected and what came.
    """
    return load_tree({} if file is None else _read_yaml(Path(file)), overrides)


def load_tree(tree: dict[str, Any], overrides: Iterable[str] = ()) -> Config:
    """As `load`, from a mapping, such as the configuration in a manifest; the mapping is changed."""
    for word in overrides:
        _apply(tree, word)
    _derive_split(tree)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in _causes(error.errors()))) from None
    _check_across(config)
    return config


def _derive_split(tree: dict[str, Any]) -> None:
    """Where the split of users is not given, the protocol of the evaluation decides it."""
    evaluate, split = tree.get("evaluate") or {}, tree.setdefault("split", {})
    if isinstance(evaluate, dict) and isinstance(split, dict):
        protocol = evaluate.get("protocol", "paper")
        split.setdefault("users", {"full": "leave_one_out", "time": "time"}.get(protocol, "ratio"))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {file} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {file} must be a mapping of settings. Got {type(tree).__name__}.")
    return tree


def _apply(tree: dict[str, Any], word: str) -> None:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must be key=value, such as summarize.max_keywords=4. Got {word!r}.")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: '{parent}' is a value, not a group of settings.")
    try:
        node[leaf] = yaml.safe_load(value) if value else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {value!r} is not a YAML value: {error}") from None


def known_keys(node: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, type and default, description)."""
    for name, field in node.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            kind = getattr(field.annotation, "__name__", None) or str(field.annotation)
            default = "required" if field.is_required() else f"= {field.default!r}"
            yield f"{prefix}{name}", f"{kind} {default}", " ".join((field.description or "").split())


def overrides_of(config: Config) -> list[str]:
    """The `key=value` words that make this configuration out of the defaults."""
    return list(_overrides(config, {}, ""))


def _overrides(node: Settings, defaults: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, field in type(node).model_fields.items():
        value, default = getattr(node, name), defaults.get(name, field.default)
        if isinstance(value, Settings):
            inner = dict(default) if isinstance(default, Settings) else {}
            yield from _overrides(value, inner, f"{prefix}{name}.")
        elif value != default:
            yield f"{prefix}{name}={json.dumps(value)}"


def _causes(problems: list[Any]) -> list[Any]:
    """Without what only follows from another: a list whose one member is wrong is also said to be too short."""
    places = [problem["loc"] for problem in problems]
    inner = [any(other[: len(place)] == place and other != place for other in places) for place in places]
    return [problem for problem, follows in zip(problems, inner, strict=True) if not follows]


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        names = [name for name, _, _ in known_keys()]
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
        return f"{key}: there is no such setting." + (f" Did you mean {near[0]}?" if near else "")
    if problem["type"] == "missing":
        return f"{key}: must be set."
    message = problem["msg"]
    return f"{key}: {message[0].lower()}{message[1:]}. Got {problem['input']!r}."


def _tuning_problems(config: Config) -> list[str]:
    """Batches that cannot be divided."""
    problems, workers = [], config.train.workers
    for name in ("tune_recommender", "tune_summarizer"):
        tune: Tuning = getattr(config, name)
        each = tune.batch_size // workers
        if tune.batch_size % workers or each % min(each, tune.micro_batch_size):
            problems.append(
                f"{name}.batch_size: must be a multiple of train.workers ({workers}), and each worker's share one of "
                f"micro_batch_size ({tune.micro_batch_size}) where it is larger. Got {tune.batch_size}."
            )
    summarizer = config.tune_summarizer
    if summarizer.batch_size % summarizer.generations:
        problems.append(
            f"tune_summarizer.batch_size: must be a multiple of generations ({summarizer.generations}). "
            f"Got {summarizer.batch_size}."
        )
    return problems


def _strings(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text among the settings, with its dotted key."""
    if isinstance(node, str):
        yield prefix, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _strings(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(node, tuple):
        for number, value in enumerate(node):
            yield from _strings(value, f"{prefix}.{number}")


def _secret_problems(config: Config) -> list[str]:
    """Secrets in addresses, and variables of the engine that are called so."""
    problems = []
    for key, value in _strings(config.model_dump()):
        if key == "serve.store" and holds_password(value):
            problems.append(
                "serve.store: must hold no password, since settings are stored and shown. Put the address into an "
                f"environment variable and name that, as in env:MMSRAREC_STORE. Got {shown(value)!r}."
            )
        elif holds_password(value):
            problems.append(
                f"{key}: must hold no password, key or token, since settings are stored and shown. Put them into the "
                f"environment of the nodes (docs/operations.md). Got {shown(value)!r}."
            )
    for name in filter(names_secret, config.engine.env):
        problems.append(
            f"engine.env.{name}: must not hold a secret, since settings are stored and shown. Put it into the "
            "environment of the nodes, which engines inherit."
        )
    return problems


def _check_across(config: Config) -> None:
    """Rules that join several settings."""
    problems = _secret_problems(config)
    if config.data.format != "shop" and not config.data.path:
        problems.append(f"data.path: must be set for data.format '{config.data.format}'.")
    if config.build.cache is not None and not Path(config.build.cache).is_absolute():
        problems.append(f"build.cache: must be an absolute local folder. Got {config.build.cache!r}.")
    if "://" not in config.run and not Path(config.run).is_absolute():
        problems.append(
            f"run: must be an absolute path or a URI. Got {config.run!r}: inside a Ray job a relative path would "
            "land in Ray's temporary copy of the working directory and be lost."
        )
    for key in ("validation", "test"), ("item_validation", "item_test"):
        if sum(getattr(config.split, name) for name in key) >= 1:
            problems.append(f"split.{key[0]} + split.{key[1]}: must leave a share to train on.")
    if config.serve.fetch.enabled and not config.serve.fetch.hosts:
        problems.append(
            "serve.fetch.hosts: must name the hosts that may be asked, since whoever puts items says which address is "
            "fetched. Got ()."
        )
    serve = config.serve
    at_most = serve.max_in_flight + serve.max_thumbnails + serve.max_waiting
    if serve.ingress.max_ongoing_requests <= at_most:
        problems.append(
            "serve.ingress.max_ongoing_requests: must be above serve.max_in_flight, serve.max_thumbnails and "
            f"serve.max_waiting together, {at_most}, so that those who are too many can be told. "
            f"Got {serve.ingress.max_ongoing_requests}."
        )
    for name in ("ingress", "retriever", "ranker", "summariser"):
        scaled = getattr(config.serve, name)
        if scaled.max_replicas < scaled.min_replicas:
            problems.append(
                f"serve.{name}.max_replicas: must be at least its min_replicas, {scaled.min_replicas}. "
                f"Got {scaled.max_replicas}."
            )
    if config.engine.gpus and config.engine.gpus != config.engine.tensor_parallel_size:
        problems.append(
            f"engine.gpus: must equal engine.tensor_parallel_size ({config.engine.tensor_parallel_size}) or be 0. "
            f"Got {config.engine.gpus}."
        )
    for name in ("sasrec", "bert4rec"):
        encoder = getattr(config.methods, name)
        if encoder.dim % encoder.heads:
            problems.append(f"methods.{name}.heads: must divide its dim, {encoder.dim}. Got {encoder.heads}.")
    dim = getattr(config.methods, config.retrieve.encoder).dim
    if config.retrieve.index == "ivf_pq" and dim % config.retrieve.pq_bytes:
        problems.append(
            f"retrieve.pq_bytes: must divide methods.{config.retrieve.encoder}.dim ({dim}). "
            f"Got {config.retrieve.pq_bytes}."
        )
    if "moments" in config.rank.evidence and not config.retrieve.voters:
        problems.append("retrieve.voters: must be above 0, since rank.evidence names moments. Got 0.")
    problems += _tuning_problems(config)
    if len(set(config.evaluate.seeds)) < len(config.evaluate.seeds):
        problems.append(f"evaluate.seeds: each may stand once. Got {list(config.evaluate.seeds)}.")
    if problems:
        raise ConfigError("\n".join(problems))
