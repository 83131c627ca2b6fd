"""What goes live together: dataset, keywords, retriever and adapter of one run, under one version."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from mmsrarec_ray.adapters import ADAPTER
from mmsrarec_ray.config import Config, load_tree
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.models.load import fingerprint as model_fingerprint
from mmsrarec_ray.pipeline import SUMMARY
from mmsrarec_ray.store import Artefact, Folder, Run, fingerprint

PARTS = ("dataset", "keywords", "retriever", "recommender")
_STAGES = {"dataset": "prepare", "keywords": "summarize", "retriever": "retrieve", "recommender": "tune_recommender"}
_SUMMARIZER, _TUNING = "summarizer", "tune_summarizer"  # a part too, where the keywords are those of a tuned model


@dataclass(frozen=True)
class Bundle:
    """Published artefacts that were made from each other, and the configuration they were made with.

    Plain data: every replica gets it and opens what it needs.
    """

    run: str
    parts: dict[str, Artefact]
    config: Config

    @classmethod
    def of(cls, run: str, overrides: Iterable[str] = (), pipeline: str | None = None) -> Bundle:
        """The bundle of a run: that of a pipeline's summary, by default of the newest; of a run without any, the newest
        recommender with what it was made from.

        overrides: `key=value` words over the configuration of the recommender. Raises ArtefactError where a part is
        missing or was not made from the others, ConfigError where a setting is wrong.
        """
        found = Run.at(run)
        summaries = found.published("pipeline")
        if pipeline is not None:
            parts = _of_summary(found.artefact("pipeline", pipeline), found)
        elif summaries:
            parts = _of_summary(summaries[0], found)
        else:
            parts = _newest(found)
        _check_made_from_each_other(parts)
        tree = copy.deepcopy(parts["recommender"].manifest.config)
        config = load_tree(tree, [f"run={json.dumps(run)}", *overrides])
        if parts["recommender"].folder.scheme:
            raise ConfigError(f"run: the engine reads its adapter from a folder that its machine sees. Got {run!r}.")
        return cls(run, parts, config)

    @cached_property
    def version(self) -> str:
        """Names the content: equal parts and weights have equal versions, wherever they lie."""
        digests = {name: part.manifest.digest for name, part in self.parts.items()}
        return fingerprint({"parts": digests, "model": model_fingerprint(self.config.model)})

    @property
    def created(self) -> datetime:
        return max(part.manifest.created for part in self.parts.values())

    @property
    def adapter(self) -> str:
        """The local folder of the recommender's adapter."""
        return (self.parts["recommender"].folder / ADAPTER).path

    @property
    def summarizer(self) -> str | None:
        """The local folder of the adapter that the keywords were made with; None where they are the model's own."""
        part = self.parts.get(_SUMMARIZER)
        return (part.folder / ADAPTER).path if part else None

    def folder(self, part: str) -> Folder:
        return self.parts[part].folder

    def verify(self) -> None:
        """Raises ArtefactError where a file of a part is missing or not what its manifest says."""
        for part in self.parts.values():
            part.verify()

    def summary(self) -> dict[str, Any]:
        """For people and programs: what is live."""
        model = self.config.model
        return {
            "version": self.version,
            "created": self.created.isoformat(),
            "parts": {name: part.fingerprint for name, part in self.parts.items()},
            "model": {"source": model.source, "fingerprint": model_fingerprint(model)},
            "items": self.parts["dataset"].manifest.counts["items_out"],
        }


def _of_summary(pipeline: Artefact, run: Run) -> dict[str, Artefact]:
    if not pipeline.published:
        raise ArtefactError(f"{pipeline.folder.path}: there is no such pipeline, or it is unfinished.")
    summary = json.loads(pipeline.folder.read_bytes(SUMMARY))
    # The last name of a path, not the path: a run folder may have been moved as a whole.
    stages = _STAGES | ({_SUMMARIZER: _TUNING} if _TUNING in summary else {})
    return {name: run.artefact(name, summary[stage]["artefact"].rsplit("/", 1)[-1]) for name, stage in stages.items()}


def _newest(run: Run) -> dict[str, Artefact]:
    recommenders = run.published("recommender")
    if not recommenders:
        raise ArtefactError(
            f"{run.folder.path}: expected a recommender, got none. Make one with jobs/pipeline.py or "
            "jobs/tune_recommender.py."
        )
    newest = recommenders[0]
    parts = {name: _made_from(newest, name, run) for name in ("dataset", "retriever")} | {"recommender": newest}
    parts["keywords"] = _keywords_of(newest, run)
    if _SUMMARIZER in parts["keywords"].manifest.inputs:
        parts[_SUMMARIZER] = _made_from(parts["keywords"], _SUMMARIZER, run)
    return parts


def _keywords_of(recommender: Artefact, run: Run) -> Artefact:
    """Those that the recommender reads; of one that reads titles the newest of its dataset, which people shall see."""
    made_from = recommender.manifest.inputs
    if "keywords" in made_from:
        return _made_from(recommender, "keywords", run)
    fitting = [e for e in run.published("keywords") if e.manifest.inputs["dataset"] == made_from["dataset"]]
    if not fitting:
        raise ArtefactError(
            f"{run.folder.file('keywords')}: expected keywords of the dataset that {recommender.folder.path} was made "
            "from. Make them with jobs/summarize.py."
        )
    return fitting[0]


def _made_from(made: Artefact, name: str, run: Run) -> Artefact:
    """What an artefact was made from, of this name."""
    digest = made.manifest.inputs[name]
    fitting = [each for each in run.published(name) if each.manifest.digest == digest]
    if not fitting:
        raise ArtefactError(f"{run.folder.file(name)}: expected the {name} that {made.folder.path} was made from.")
    return fitting[0]


def _check_made_from_each_other(parts: dict[str, Artefact]) -> None:
    digests = {name: part.manifest.digest for name, part in parts.items()}
    for name, part in parts.items():
        for other, digest in part.manifest.inputs.items():
            if other in digests and digests[other] != digest:
                raise ArtefactError(
                    f"{part.folder.path}: expected a {name} made from {parts[other].folder.path}, "
                    f"got one made from another {other}."
                )
