"""The stage behind jobs/build_model.py: makes a small model and publishes its folder."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.errors import LeaseError
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.lease import held
from mmsrarec_ray.models.smollm2 import find_gguf
from mmsrarec_ray.models.teacher import find_weights
from mmsrarec_ray.store import Artefact, Folder, source_fingerprint
from mmsrarec_ray.summarize import align, teach
from mmsrarec_ray.summarize.build_tiny import build_tiny
from mmsrarec_ray.summarize.compact import build_compact


class BuildModel(Stage):
    """Make a small multimodal model and examine it on items it has not seen."""

    name: ClassVar[str] = "build_model"
    artefact: ClassVar[str] = "model"
    code: ClassVar[tuple[str, ...]] = (
        *("data/shop/draw", "data/shop/law", "data/shop/truth", "data/shop/write", "data/images", "intervals"),
        *("models/architecture", "models/tokenizer", "models/pretrain_vision", "models/smollm2"),
        *("summarize/build", "summarize/build_tiny", "summarize/teach", "summarize/lessons", "summarize/reading"),
        *("summarize/evaluate_tiny", "summarize/compact", "summarize/align", "summarize/catalogue"),
        *("summarize/targets", "summarize/examine", "summarize/distil", "summarize/probe", "models/teacher"),
        *("summarize/training", "summarize/prompts", "summarize/keywords"),
    )

    @property
    def _compact(self) -> bool:
        return self.config.build.model == "compact"

    @property
    def recipe(self) -> teach.Recipe | align.Alignment:
        if self._compact:
            return align.alignment(taught=self.config.build.teacher is not None, smoke=self.config.build.smoke)
        return teach.SMOKE if self.config.build.smoke else teach.Recipe()

    def requires(self) -> list[Stage]:
        return [Prepare(self.config)] if self._compact else []

    def settings(self) -> dict[str, Any]:
        return {"model": self.config.build.model, "recipe": asdict(self.recipe)}

    def sources(self) -> dict[str, str]:
        if not self._compact:
            return {}
        files = {"gguf": self._gguf()} | ({"teacher": find_weights()} if self.config.build.teacher else {})
        return {name: source_fingerprint(Folder.at(str(file.parent)), [file.name]) for name, file in files.items()}

    def engine(self) -> dict[str, Any]:
        import torch
        import transformers

        return {"name": "torch", "version": torch.__version__, "transformers": transformers.__version__}

    def resources(self) -> dict[str, Any]:
        return {"cores of the head node": "all"}

    def check(self) -> None:
        if self._compact:
            self._gguf()
            if self.config.build.teacher:
                find_weights()

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        cache = self._cache(out)
        with held(cache), tempfile.TemporaryDirectory() as scratch:  # a job of another run folder may make the same
            if self.fresh:
                cache.clear()
            out.clear()
            model = Path(scratch) / "model"
            counts, metrics = self._build(model, inputs, Path(cache.path))
            for file in sorted(model.iterdir()):
                out.write_bytes(file.name, file.read_bytes())
        return Outcome(counts, metrics)

    def clear_up(self, artefact: Artefact) -> None:
        cache = self._cache(artefact.folder)
        with suppress(LeaseError), held(cache):  # whoever has it by now makes the same, and removes it then
            shutil.rmtree(cache.path, ignore_errors=True)

    def _build(self, model: Path, inputs: dict[str, Artefact], cache: Path) -> tuple[dict[str, int], dict[str, Any]]:
        if isinstance(self.recipe, align.Alignment):
            dataset = inputs["dataset"]
            figures = build_compact(model, dataset.folder, self._gguf(), self.recipe, cache)
            told = {form: {k: v for k, v in each.items() if k != "samples"} for form, each in figures.items()}
            return {"in": dataset.manifest.counts["items_out"], "out": 1}, told  # samples stand in figures.json
        exam = build_tiny(model, cache, self.recipe)
        columns = exam.summaries | {f"questions, {shown}": each for shown, each in exam.reading.items()}
        flat = {f"{asked}: {name}": round(s.value, 4) for asked, each in columns.items() for name, s in each.items()}
        return {"in": self.recipe.items, "out": 1}, flat

    def _gguf(self) -> Path:
        given = self.config.build.gguf
        return find_gguf(Path(given) if given else None)

    def _cache(self, out: Folder) -> Folder:
        """A folder of this result alone: its fingerprint names all that decides what is kept there."""
        above = self.config.build.cache or str(Path.home() / ".cache" / "mmsrarec_ray" / self.name)
        return Folder.at(above) / out.path.rpartition("/")[2]
