"""The stage behind jobs/tune_recommender.py: an adapter that answers whether a user chooses an item next."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar

from mmsrarec_ray import workers
from mmsrarec_ray.adapters import FACTS, TRAINING, libraries, read_facts
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import read_log
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.models.engine import require_cpus
from mmsrarec_ray.models.load import fingerprint
from mmsrarec_ray.progress import say
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.contexts import Contexts
from mmsrarec_ray.rank.evidence import Signs
from mmsrarec_ray.rank.examples import Source, scale_of, write_examples
from mmsrarec_ray.rank.expectation import FoldedTables
from mmsrarec_ray.rank.prompts import INSTRUCTIONS
from mmsrarec_ray.rank.segments import learn_segments, wanted, write_segments
from mmsrarec_ray.rank.tune import Task, check_positions, work
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.retrieve.segments import LIBRARIES
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Artefact, Folder
from mmsrarec_ray.summarize.stage import Summarize

EXAMPLES = "examples"
_SPLITS = ("train", "validation")
_SCALED = 1_000  # training contexts that the levels of evidence are made from, at most


def keyword_stages(config: Config) -> list[Stage]:
    """What makes the keywords of prompts: nothing where titles stand for items."""
    return [] if config.rank.said == "titles" else [Summarize(config)]


def keywords_in(inputs: dict[str, Artefact]) -> Folder | None:
    """The keywords among a stage's inputs; None where there are none."""
    return inputs[Summarize.artefact].folder if Summarize.artefact in inputs else None


class TuneRecommender(Stage):
    """Fine-tune the model to answer whether a user chooses an item next."""

    name: ClassVar[str] = "tune_recommender"
    artefact: ClassVar[str] = "recommender"
    scratch: ClassVar[tuple[str, ...]] = TRAINING
    code: ClassVar[tuple[str, ...]] = (
        *("rank/stage", "rank/prompts", "rank/catalogue", "rank/ask", "rank/contexts", "rank/evidence"),
        *("rank/expectation", "rank/segments", "rank/examples", "rank/packing", "rank/head", "rank/tune"),
        *("adapters", "workers", "retrieve/segments", "retrieve/moments", "retrieve/cooccurrence"),
        *("retrieve/retriever", "retrieve/index", "retrieve/encoders"),
        *("data/schemas", "data/log", "data/negatives", "data/splits", "data/parts", "data/frames", "data/images"),
        *("models/load", "models/engine", "models/pictures", "summarize/prompts", "summarize/published"),
    )

    def requires(self) -> list[Stage]:
        return [Prepare(self.config), *keyword_stages(self.config), Retrieve(self.config)]

    def settings(self) -> dict[str, Any]:
        c = self.config
        return {
            "model": c.model.model_dump() | {"source": fingerprint(c.model)},
            "rank": c.rank.model_dump(exclude={"shortlist"}),
            "tune_recommender": c.tune_recommender.model_dump(exclude={"log_steps", "checkpoint_steps"}),
            "workers": [c.train.workers, c.train.gpu],
            "images": [c.data.max_image_bytes, c.data.max_image_pixels],
            "segments": c.methods.segments.model_dump(exclude={"source"}) if wanted(c) else None,
        }

    def engine(self) -> dict[str, Any]:
        segments = LIBRARIES if wanted(self.config) else ()
        return libraries() | {library: version(library) for library in segments}

    def resources(self) -> dict[str, Any]:
        return workers.resources(self.config.train, at_least=self._cpus())

    def _cpus(self) -> float:
        """Logical CPUs without which the writing of examples would wait for ever: writers, one reading task."""
        return self.config.engine.preprocess_concurrency + 1

    def check(self) -> None:
        check_positions(self.config)

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        import ray

        require_cpus(self.name, self._cpus())
        if self.fresh:
            out.clear()
        retriever, material = inputs["retriever"], self.material(inputs)
        (out / EXAMPLES).clear()  # parts of a killed run
        contexts = {split: retriever.manifest.counts[f"{split}_contexts"] for split in _SPLITS}
        material.scale.write(out)
        write_segments(material.signs.segments, out)
        counts = write_examples(material, retriever.folder, contexts, out / EXAMPLES)
        told = ", ".join(f"{counts[f'train_{task}']:,} {task}" for task in INSTRUCTIONS)
        say(f"tune_recommender: examples: {told}; {counts['validation_choice']:,} for validation")
        if not out.exists(FACTS):  # else a run was killed when all but the manifest was there
            task = Task(self.config, material.catalogue, out / EXAMPLES / "train", out / EXAMPLES / "validation", out)
            workers.run("tune_recommender", work, {"task": ray.put(task)}, self.config.train)
        facts = read_facts(out)
        say(
            f"tune_recommender: {facts['steps']:,} steps, loss {facts['train_loss']:.4f}, on validation users "
            f"{facts['validation_loss']:.4f} with {facts['validation_accuracy']:.1%} of the answers right"
        )
        return Outcome(counts, facts)

    def material(self, inputs: dict[str, Artefact]) -> Source:
        """What examples are written from."""
        rank, tasks = self.config.rank, self.config.tune_recommender.tasks
        form = "image" if tasks.item_keywords else rank.candidate  # that task shows an item whole, candidates or not
        dataset, keywords = inputs["dataset"].folder, keywords_in(inputs)
        catalogue = Catalogue.read(dataset, keywords, form, rank.said)
        log, retriever = read_log(dataset), inputs["retriever"].folder
        segments = learn_segments(self.config, log, dataset, keywords)
        together = Retriever.load(retriever, memory_map=True).cooccurrence
        tables = FoldedTables.read(retriever) if "encoder" in rank.evidence else None
        signs = Signs(rank.evidence, log.training, together, log.n_items, tables, segments)
        first = next(name for name in (retriever / "contexts").files() if name.startswith("train"))
        some = Contexts.of(log, read_part(retriever / "contexts", first).slice(0, _SCALED))
        return Source(self.config, log, catalogue, signs, scale_of(self.config, log, signs, some))
