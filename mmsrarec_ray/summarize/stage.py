"""The stage behind jobs/summarize.py: keywords of the whole catalogue, incremental and resumable."""

from __future__ import annotations

from typing import Any, ClassVar

from mmsrarec_ray.adapters import ADAPTER, ADAPTER_WEIGHTS
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.job import Outcome, Stage, checksums
from mmsrarec_ray.metrics import Metrics
from mmsrarec_ray.models.engine import engine_cpus, engine_resources, require_cpus, require_folder
from mmsrarec_ray.models.load import engine_identity, fingerprint, source
from mmsrarec_ray.progress import say
from mmsrarec_ray.store import Artefact, Folder, Run
from mmsrarec_ray.summarize import finish
from mmsrarec_ray.summarize.contact_sheet import write_contact_sheet
from mmsrarec_ray.summarize.pipeline import FAILURE_PARTS, KEYWORD_PARTS, Recipe, summarise
from mmsrarec_ray.summarize.render import prompt_version, require_room
from mmsrarec_ray.summarize.reuse import Items, contains
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer

STAGING = "staging"
_FORCED = "forced"


class Summarize(Stage):
    """Turn every item of the catalogue into keywords."""

    name: ClassVar[str] = "summarize"
    artefact: ClassVar[str] = "keywords"
    scratch: ClassVar[tuple[str, ...]] = (STAGING,)
    code: ClassVar[tuple[str, ...]] = (
        *("summarize/stage", "summarize/pipeline", "summarize/render", "summarize/prompts", "summarize/keywords"),
        *("summarize/reuse", "summarize/finish", "summarize/contact_sheet", "models/load", "models/engine"),
        *("adapters", "models/lora", "models/pictures", "data/schemas", "data/parts", "data/rows", "data/frames"),
        *("data/images",),
    )

    def requires(self) -> list[Stage]:
        tuned = [TuneSummarizer(self.config)] if self.config.summarize.tuned else []
        return [Prepare(self.config), *tuned]

    def settings(self) -> dict[str, Any]:
        c = self.config
        return {
            "model": c.model.model_dump() | {"source": fingerprint(c.model)},
            "summarize": c.summarize.model_dump(exclude={"rows_per_part"}),
            "images": [c.data.max_image_bytes, c.data.max_image_pixels],
        }

    def engine(self) -> dict[str, Any]:
        return engine_identity(self.config.engine)

    def resources(self) -> dict[str, Any]:
        return engine_resources(self.config)

    def check(self) -> None:
        source(self.config.model)
        require_room(self.config)
        if self.config.summarize.tuned:
            require_folder(self.config.run, "tuned summaries")

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        require_cpus(self.name, engine_cpus(self.config))
        dataset = inputs["dataset"].folder
        items = Items(dataset, finish.parquet_files(dataset / "items"))
        recipe = self._recipe(inputs.get("summarizer"))
        staging = out / STAGING
        if self.fresh:
            out.clear()
            staging.write_bytes(_FORCED, b"")  # whoever goes on with it takes nothing over either
        earlier = None if staging.exists(_FORCED) else self._earlier(recipe)
        (staging / FAILURE_PARTS).clear()
        known = Items(out, _known_files(earlier, staging)).index()
        catalogue = items.index()
        total, pending = len(catalogue), int((~contains(known, catalogue)).sum())
        measured = Metrics(self.name)
        measured.known(reused=total - pending, waiting=pending)
        say(f"summarize: {total:,} items, {total - pending:,} known, {pending:,} to summarise")
        if pending:
            with measured.repeated():
                summarise(self.config, items, known, pending, recipe, staging, measured)
        counts, metrics = finish.publish(catalogue, _known_files(earlier, staging), staging, out)
        _check_counts(total, counts)
        write_contact_sheet(self.config, items, out)
        made = {"model": recipe.model, "prompt_version": recipe.prompt_version}
        return Outcome({"in": total, **counts, "reused": total - pending}, metrics | made)

    def _recipe(self, summarizer: Artefact | None) -> Recipe:
        """The weights are those of the model, and of the adapter where there is one."""
        weights, version = fingerprint(self.config.model), prompt_version(self.config)
        if summarizer is None:
            return Recipe(weights, version)
        adapter = summarizer.manifest.files[f"{ADAPTER}/{ADAPTER_WEIGHTS}"].sha256[:20]
        return Recipe(f"{weights}+{adapter}", version, (summarizer.folder / ADAPTER).path)

    def _earlier(self, recipe: Recipe) -> Artefact | None:
        """The newest keywords of this run folder made with the same weights and prompt. Raises ArtefactError where
        they are damaged: rows that are taken over get new checksums."""
        for artefact in Run.at(self.config.run).published(self.artefact):
            made = artefact.manifest.metrics
            if (made["model"], made["prompt_version"]) == (recipe.model, recipe.prompt_version):
                artefact.verify(checksums)
                return artefact
        return None


def _known_files(earlier: Artefact | None, staging: Folder) -> list[str]:
    """Keyword files whose rows may be taken over: of the artefact before, and of this one's unfinished run."""
    files = finish.parquet_files(staging / KEYWORD_PARTS)
    return files + (finish.parquet_files(earlier.folder / "items") if earlier is not None else [])


def _check_counts(total: int, counts: dict[str, int]) -> None:
    """Every item is in the keywords or in the failures, once. Raises RuntimeError where one got lost."""
    if counts["out"] + counts["failed"] != total:
        raise RuntimeError(
            f"the counts do not add up: {total} items in, {counts['out']} with keywords, {counts['failed']} failed"
        )
