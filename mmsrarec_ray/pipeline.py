"""The stage behind jobs/pipeline.py: the whole chain, from the data to the report, as one job."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.stage import Evaluate
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.rank.stage import TuneRecommender
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Artefact, Folder
from mmsrarec_ray.summarize.stage import Summarize
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer

SUMMARY = "summary.json"


class Pipeline(Stage):
    """Run every stage: prepare, tune_summarizer where summaries are tuned, summarize, retrieve, tune_recommender,
    evaluate. What is up to date is skipped."""

    name: ClassVar[str] = "pipeline"
    artefact: ClassVar[str] = "pipeline"
    code: ClassVar[tuple[str, ...]] = ("pipeline",)
    force_all: ClassVar[bool] = True

    def requires(self) -> list[Stage]:
        tuning = (TuneSummarizer,) if self.config.summarize.tuned else ()
        stages = (Prepare, *tuning, Summarize, Retrieve, TuneRecommender, Evaluate)
        return [stage(self.config) for stage in stages]

    def settings(self) -> dict[str, Any]:
        return {}

    def engine(self) -> dict[str, Any]:
        return {"name": "json"}

    def resources(self) -> dict[str, Any]:
        return {"CPU": 0}

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        """Write where each stage's result lies, with its counts and figures."""
        out.clear()
        rows = {
            stage.name: {
                "artefact": inputs[stage.artefact].folder.path,
                "counts": inputs[stage.artefact].manifest.counts,
                "metrics": inputs[stage.artefact].manifest.metrics,
                "seconds": inputs[stage.artefact].manifest.seconds,
            }
            for stage in self.requires()
        }
        out.write_bytes(SUMMARY, json.dumps(rows, indent=2).encode())
        report = inputs[Evaluate.artefact].manifest
        return Outcome({"stages": len(rows)}, report.metrics)
