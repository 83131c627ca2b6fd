"""What each method that an evaluation can name is made of: its settings, the stages it reads, how to build it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import pyarrow.compute as pc

from mmsrarec_ray.adapters import ADAPTER
from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Log
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.data.shop.generate import Shop, shop_of
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.job import Stage
from mmsrarec_ray.methods.base import Method
from mmsrarec_ray.methods.blend import Blend, learnt_from
from mmsrarec_ray.methods.content import ContentKnn
from mmsrarec_ray.methods.fusion import Content, Fusion
from mmsrarec_ray.methods.linear import Ease
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.methods.neighbours import ItemKnn, SessionKnn
from mmsrarec_ray.methods.oracle import HistoryOracle, TasteOracle
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.methods.segments import SegmentsMethod
from mmsrarec_ray.methods.sequential import Sequential
from mmsrarec_ray.methods.simple import Popularity, Random
from mmsrarec_ray.models.engine import engine_resources, require_folder
from mmsrarec_ray.models.load import engine_identity, identity
from mmsrarec_ray.rank.answers import Answers
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.evidence import Scale
from mmsrarec_ray.rank.segments import read_segments, wanted
from mmsrarec_ray.rank.stage import TuneRecommender, keyword_stages, keywords_in
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.retrieve.segments import LIBRARIES
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.settings import Fusion as FusionSettings
from mmsrarec_ray.settings import FusionContent as FusionContentSettings
from mmsrarec_ray.store import Artefact, Folder, Run, code_fingerprint, fingerprint
from mmsrarec_ray.summarize.published import read_halves
from mmsrarec_ray.summarize.stage import Summarize

OURS = ("mmsrarec", "mmsrarec+retrieval", "mmsrarec+segments", "mmsrarec+fusion", "mmsrarec+fusion_content")
ORACLES = ("taste_oracle", "history_oracle")
Renew = Callable[[Folder], None]


class Recipe:
    """How to make one method from the configuration and from artefacts. This one: of ids alone, without training."""

    code: tuple[str, ...] = ("methods/simple", "methods/neighbours", "methods/linear")
    """Modules that decide its scores."""
    libraries: tuple[str, ...] = ("numpy", "scipy")

    def __init__(self, name: str, config: Config, renew: Renew):
        """renew: called with each folder that methods share, before it is looked into: it may be emptied."""
        self.name, self.config, self.renew = name, config, renew

    @property
    def requires(self) -> list[Stage]:
        """The stages it reads beside the dataset."""
        return []

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its scores."""
        own = getattr(self.config.methods, self.name, None)
        return own.model_dump() if own is not None else {}

    def engine(self) -> dict[str, Any]:
        """The libraries that compute it, with their versions."""
        return {"name": self.libraries[0], **{library: version(library) for library in self.libraries}}

    def resources(self) -> dict[str, Any]:
        """What scoring asks the cluster for."""
        return {"CPU": 1}

    def check(self) -> None:
        """Raises ConfigError where it cannot work."""
        return

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        """The method, not yet fitted."""
        methods = self.config.methods
        made: dict[str, Callable[[], Method]] = {
            "random": lambda: Random(seed),
            "popularity": Popularity,
            "itemknn": lambda: ItemKnn(methods.itemknn),
            "session_knn": lambda: SessionKnn(methods.session_knn),
            "ease": lambda: Ease(methods.ease),
        }
        return made[self.name]()


class SequentialRecipe(Recipe):
    """Sequence encoders."""

    code = (
        "methods/sequential",
        "retrieve/encoders",
        "retrieve/fit",
        "retrieve/validate",
        "retrieve/train",
        "workers",
        "retrieve/folders",
    )
    libraries: tuple[str, ...] = ("torch", "numpy")

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"workers": self.config.train.workers, "gpu": self.config.train.gpu}

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        settings = getattr(self.config.methods, self.name)
        return Sequential(self.name, settings, self.config.train, seed, Run.at(self.config.run), self.renew)


class RetrievalRecipe(Recipe):
    """What the similar moments did next."""

    code: tuple[str, ...] = (
        *("methods/retrieval", "methods/neighbours"),
        *("retrieve/retriever", "retrieve/encoders", "retrieve/index", "retrieve/cooccurrence"),
    )
    libraries: tuple[str, ...] = ("faiss-cpu", "torch", "numpy", "scipy")

    @property
    def requires(self) -> list[Stage]:
        return [Retrieve(self.config)]

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        made = inputs["retriever"]
        return Retrieval(self.config.methods.retrieval, Retriever.load(made.folder), seconds_of(made))


class ContentRecipe(Recipe):
    """Items like those of the history, by what is said of them."""

    code = ("methods/content", "methods/neighbours", "models/sentences", "summarize/published", "evaluate/recipes")
    libraries: tuple[str, ...] = ("scikit-learn", "transformers", "numpy", "scipy")

    @property
    def requires(self) -> list[Stage]:
        return [Summarize(self.config)] if self.config.methods.content_knn.source == "keywords" else []

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"weights": identity(self.config.methods.content_knn.encoder)}

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        settings = self.config.methods.content_knn
        return ContentKnn(settings, _said(settings.source, log, inputs))


class SegmentsRecipe(Recipe):
    """What users of one's segments choose."""

    code = ("methods/segments", "retrieve/segments", "summarize/published", "evaluate/recipes")
    libraries: tuple[str, ...] = LIBRARIES

    @property
    def requires(self) -> list[Stage]:
        return [Summarize(self.config)] if self.config.methods.segments.source == "keywords" else []

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        settings = self.config.methods.segments
        if settings.source == "texts":
            return SegmentsMethod(settings, [_said("texts", log, inputs)], seed)
        return SegmentsMethod(settings, read_halves(inputs["keywords"].folder, log.items), seed)


class FusionRecipe(Recipe):
    """A small network over other methods."""

    code: tuple[str, ...] = ("methods/fusion", "methods/neighbours", "models/sentences", "retrieve/cooccurrence")
    libraries: tuple[str, ...] = ("torch", "numpy", "scipy")

    def __init__(self, name: str, config: Config, renew: Renew):
        super().__init__(name, config, renew)
        self.own: FusionSettings = getattr(config.methods, name)
        self.parts = [recipe_of(part, config, renew) for part in self.own.of]
        self.code = (*self.code, *(module for part in self.parts for module in part.code))
        self.libraries = _merged(self, *self.parts)

    @property
    def requires(self) -> list[Stage]:
        return [stage for part in self.parts for stage in part.requires]

    @property
    def settings(self) -> dict[str, Any]:
        parts = {part.name: part.settings for part in self.parts}
        return super().settings | {"window": self.config.retrieve.cooccurrence_window, "parts": parts}

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        methods = [part.build(seed, log, inputs) for part in self.parts]
        content = self.content(log, inputs)
        return Fusion(self.name, self.own, seed, methods, content, self.config.retrieve.cooccurrence_window)

    def content(self, log: Log, inputs: dict[str, Artefact]) -> Content | None:
        """What is said of the items."""
        return None


class FusionContentRecipe(FusionRecipe):
    """The same with likeness in words."""

    code: tuple[str, ...] = (*FusionRecipe.code, "summarize/published", "evaluate/recipes")
    libraries: tuple[str, ...] = ("torch", "scikit-learn", "transformers", "numpy", "scipy")

    @property
    def words(self) -> FusionContentSettings:
        return self.config.methods.fusion_content

    @property
    def requires(self) -> list[Stage]:
        return [*super().requires, *([Summarize(self.config)] if self.words.source == "keywords" else [])]

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"weights": identity(self.words.encoder)}

    def content(self, log: Log, inputs: dict[str, Artefact]) -> Content | None:
        return Content(_said(self.words.source, log, inputs), self.words.encoder)


class MmsraRecRecipe(RetrievalRecipe):
    """The paper's recommender."""

    code: tuple[str, ...] = (
        *RetrievalRecipe.code,
        *("methods/mmsrarec", "rank/score", "rank/answers", "rank/ask", "rank/catalogue", "rank/evidence"),
        *("rank/expectation", "rank/prompts", "models/engine", "models/load", "models/lora"),
        *("summarize/prompts", "data/images"),
        *("data/frames", "rank/segments", "rank/contexts", "retrieve/segments", "retrieve/contexts"),
        *("retrieve/moments", "summarize/published", "models/pictures"),
    )
    libraries: tuple[str, ...] = ("transformers", *RetrievalRecipe.libraries)

    def __init__(self, name: str, config: Config, renew: Renew):
        super().__init__(name, config, renew)
        if wanted(config):
            self.libraries = (*self.libraries, *LIBRARIES)

    @property
    def requires(self) -> list[Stage]:
        return [*keyword_stages(self.config), Retrieve(self.config), TuneRecommender(self.config)]

    @property
    def settings(self) -> dict[str, Any]:
        c = self.config
        shown = {name: getattr(c.retrieve, name) for name in ("neighbours", "history", "voters", "vote_temperature")}
        short = {"shortlist": c.rank.shortlist, "retrieval": c.methods.retrieval.model_dump()}
        return self._asking() | shown | short

    def _asking(self) -> dict[str, Any]:
        """What decides the answer to a question, beside what its key holds: items by number, what is said of them."""
        c = self.config
        limits = [c.data.max_image_bytes, c.data.max_image_pixels]
        return {"rank": c.rank.model_dump(exclude={"shortlist"}), "model": c.model.model_dump(), "images": limits}

    def engine(self) -> dict[str, Any]:
        return super().engine() | engine_identity(self.config.engine)

    def resources(self) -> dict[str, Any]:
        return engine_resources(self.config)

    def check(self) -> None:
        require_folder(self.config.run, "mmsrarec")

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> MmsraRec:
        c, made = self.config, [inputs[stage.artefact] for stage in self.requires]
        dataset, keywords = inputs["dataset"].folder, keywords_in(inputs)
        catalogue = Catalogue.read(dataset, keywords, c.rank.candidate, c.rank.said)
        retrieval = Retrieval(c.methods.retrieval, Retriever.load(inputs["retriever"].folder))
        earlier = {name: seconds for each in made for name, seconds in seconds_of(each).items()}
        recommender, answers = inputs["recommender"].folder, self.answers(inputs)
        segments = read_segments(c, log.items, dataset, keywords, recommender)
        adapter = (recommender / ADAPTER).path
        blends = set(OURS[1:]).intersection(c.evaluate.methods)
        ahead = partial(learnt_from, settings=c.methods.blend, seed=seed) if blends else None
        scale = Scale.read(recommender)
        return MmsraRec(c, catalogue, retrieval, scale, segments, adapter, earlier, answers, ahead)

    def answers(self, inputs: dict[str, Artefact]) -> Answers:
        """Those of the same model, asked in the same way about the same items."""
        parts = ("dataset", *(stage.artefact for stage in keyword_stages(self.config)), "recommender")
        made_from = {name: inputs[name].manifest.digest for name in parts}
        decides = [self._asking(), code_fingerprint(self.code), self.engine(), made_from]
        folder = Run.at(self.config.run).folder / "answers" / fingerprint(decides)
        self.renew(folder)
        return Answers(folder)


class BlendRecipe(MmsraRecRecipe):
    """The same beside another method, by learnt weights."""

    def __init__(self, name: str, config: Config, renew: Renew):
        super().__init__(name, config, renew)
        self.ours = MmsraRecRecipe("mmsrarec", config, renew)
        self.other = recipe_of(name.partition("+")[2], config, renew)
        self.code = (*MmsraRecRecipe.code, "methods/blend", "data/negatives", *self.other.code)
        self.libraries = _merged(self.ours, self.other)

    @property
    def requires(self) -> list[Stage]:
        return list({stage.name: stage for stage in (*super().requires, *self.other.requires)}.values())

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"blend": self.config.methods.blend.model_dump(), "other": self.other.settings}

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Blend:
        ours, other = self.ours.build(seed, log, inputs), self.other.build(seed, log, inputs)
        return Blend(self.name, self.config.methods.blend, seed, other, ours)


class OracleRecipe(Recipe):
    """The drawn shop's ceilings."""

    code = ("methods/oracle", "data/shop/oracle", "data/shop/law", "data/shop/generate")

    @property
    def requires(self) -> list[Stage]:
        return [Shop(self.config)]

    @property
    def settings(self) -> dict[str, Any]:
        return self.config.shop.model_dump()

    def check(self) -> None:
        if self.config.data.format != "shop":
            raise ConfigError(
                f"evaluate.methods: {self.name} knows the law of the drawn shop and needs data.format 'shop'. "
                f"Got {self.config.data.format!r}."
            )

    def build(self, seed: int, log: Log, inputs: dict[str, Artefact]) -> Method:
        settings = self.config.shop
        shop = shop_of(settings.seed, settings.items)
        if self.name == "history_oracle":
            return HistoryOracle(shop)
        truth = read_parts(inputs["shop"].folder / "truth_users", ["user_id", "look", "habit", "circle"])
        places = pc.index_in(log.users, value_set=truth["user_id"].combine_chunks())
        return TasteOracle(shop, *(truth[name].take(places).to_numpy() for name in ("look", "habit", "circle")))


def recipe_of(name: str, config: Config, renew: Renew = lambda folder: None) -> Recipe:
    """The recipe of a method that the configuration names. renew: as `Recipe` takes it."""
    kinds: dict[str, type[Recipe]] = {
        **dict.fromkeys(("sasrec", "gru4rec", "bert4rec"), SequentialRecipe),
        **dict.fromkeys(ORACLES, OracleRecipe),
        "fusion": FusionRecipe,
        "fusion_content": FusionContentRecipe,
        "retrieval": RetrievalRecipe,
        "mmsrarec": MmsraRecRecipe,
        "content_knn": ContentRecipe,
        "segments": SegmentsRecipe,
        **dict.fromkeys(OURS[1:], BlendRecipe),
    }
    return kinds.get(name, Recipe)(name, config, renew)


def seconds_of(made: Artefact) -> dict[str, float]:
    """Seconds that the making of an artefact took, those of encoders that were trained for it by their own names: other
    methods may stand on these too."""
    encoders: dict[str, float] = made.manifest.metrics.get("encoder_seconds", {})
    return {made.name: max(0.0, made.manifest.seconds - sum(encoders.values())), **encoders}


def _merged(*recipes: Recipe) -> tuple[str, ...]:
    """The libraries of all of them, each once."""
    return tuple(dict.fromkeys(library for recipe in recipes for library in recipe.libraries))


def _said(source: str, log: Log, inputs: dict[str, Artefact]) -> list[str]:
    """Words of every item, in the order of the catalogue: its title and text, or its keywords."""
    if source == "keywords":
        halves = read_halves(inputs["keywords"].folder, log.items)
        return [", ".join(filter(None, pair)) for pair in zip(*halves, strict=True)]
    table = read_parts(inputs["dataset"].folder / "items", ["item_id", "title", "text"])
    both = zip(table["title"].to_pylist(), table["text"].to_pylist(), strict=True)
    said = dict(zip(table["item_id"].to_pylist(), (". ".join(filter(None, pair)) for pair in both), strict=True))
    return [said[item] for item in log.items.to_pylist()]
