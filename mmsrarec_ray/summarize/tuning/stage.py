"""The stage behind jobs/tune_summarizer.py: an adapter whose summaries earn more reward."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

from mmsrarec_ray import workers
from mmsrarec_ray.adapters import FACTS, TRAINING, libraries, read_facts
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.models.engine import require_cpus
from mmsrarec_ray.models.load import fingerprint, identity, source
from mmsrarec_ray.progress import say
from mmsrarec_ray.store import Artefact, Folder, Run
from mmsrarec_ray.summarize.finish import parquet_files
from mmsrarec_ray.summarize.pipeline import FAILURE_PARTS
from mmsrarec_ray.summarize.render import prompt_version, require_room
from mmsrarec_ray.summarize.reuse import Items
from mmsrarec_ray.summarize.tuning.examples import SPLITS, write_examples
from mmsrarec_ray.summarize.tuning.fit import Task, work
from mmsrarec_ray.summarize.tuning.judge import LENGTH

STAGING, LOGS = "staging", "logs"


class TuneSummarizer(Stage):
    """Tune the model by rewards, so that its keywords say more."""

    name: ClassVar[str] = "tune_summarizer"
    artefact: ClassVar[str] = "summarizer"
    scratch: ClassVar[tuple[str, ...]] = (*TRAINING, STAGING)
    code: ClassVar[tuple[str, ...]] = (
        *("summarize/tuning", "summarize/render", "summarize/prompts", "summarize/keywords", "summarize/reuse"),
        *("summarize/finish", "summarize/pipeline", "models/sentences", "models/word_model", "models/load"),
        *("models/engine", "models/pictures", "adapters", "workers", "intervals"),
        *("data/schemas", "data/parts", "data/rows", "data/frames", "data/images", "data/splits"),
        *("data/shop/generate", "data/shop/law", "data/shop/truth"),
    )

    def requires(self) -> list[Stage]:
        return [Prepare(self.config)]

    def settings(self) -> dict[str, Any]:
        c = self.config
        watched = {"log_steps", "checkpoint_steps", "eval_steps", "eval_items", "trackers", "vllm_server"}
        return {
            "model": c.model.model_dump() | {"source": fingerprint(c.model)},
            "prompt": prompt_version(c),
            "tune_summarizer": c.tune_summarizer.model_dump(exclude=watched),
            "judges": [identity(judge) for judge in (c.tune_summarizer.encoder, c.tune_summarizer.reference)],
            "workers": [c.train.workers, c.train.gpu],
            "images": [c.data.max_image_bytes, c.data.max_image_pixels],
        }

    def engine(self) -> dict[str, Any]:
        return dict(libraries())

    def resources(self) -> dict[str, Any]:
        return workers.resources(self.config.train, at_least=self._cpus())

    def _cpus(self) -> float:
        """Logical CPUs without which the checking of examples would wait for ever: checkers, one reading task."""
        return self.config.engine.preprocess_concurrency + 1

    def check(self) -> None:
        source(self.config.model)
        require_room(self.config)
        if "mlflow" in self.config.tune_summarizer.trackers and find_spec("mlflow") is None:
            raise ConfigError("tune_summarizer.trackers: mlflow is not installed: `uv pip install mlflow`.")

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        require_cpus(self.name, self._cpus())
        if self.fresh:
            out.clear()
        dataset, staging = inputs["dataset"].folder, out / STAGING
        staging.clear()  # parts of a killed run
        counts = write_examples(self.config, Items(dataset, parquet_files(dataset / "items")), staging)
        say(f"tune_summarizer: {counts['train_items']:,} items to learn from, {counts['failed']:,} that cannot be used")
        if not out.exists(FACTS):  # else a run was killed when all but the manifest was there
            logs = Run.at(self.config.run).folder / LOGS / self.artefact / out.path.rsplit("/", 1)[-1]
            workers.run(self.name, work, {"task": Task(self.config, staging, out, logs)}, self.config.train)
        facts = read_facts(out)
        self._keep_failures(staging, out)
        reward, length = (facts["test"]["measures"][name] for name in ("reward", LENGTH))
        say(
            f"tune_summarizer: {facts['steps']:,} steps; on {facts['test']['items']:,} test items the reward went from "
            f"{reward['before']['value']:.3f} to {reward['after']['value']:.3f}, the tokens of an answer from "
            f"{length['before']['value']:.1f} to {length['after']['value']:.1f}"
        )
        return Outcome({name: counts[name] for name in (*(f"{split}_items" for split in SPLITS), "failed")}, facts)

    def _keep_failures(self, staging: Folder, out: Folder) -> None:
        (out / FAILURE_PARTS).clear()
        for name in (staging / FAILURE_PARTS).files():
            (out / FAILURE_PARTS).write_bytes(name, (staging / FAILURE_PARTS).read_bytes(name))
