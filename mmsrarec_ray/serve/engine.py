"""vLLM's async engine of one replica: it scores candidates with one adapter, writes keywords with another or none."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mmsrarec_ray.models.load import engine_arguments, source
from mmsrarec_ray.rank.ask import Asker, Question, p_yes
from mmsrarec_ray.rank.catalogue import Shown
from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.summarize.keywords import Keywords, parse
from mmsrarec_ray.summarize.render import Renderer

_RECOMMENDER, _SUMMARIZER = 1, 2  # vLLM numbers adapters from 1


class Engine:
    """One engine: the base, the recommender's adapter and, where keywords are those of a tuned model, the summarizer's.
    The environment must be that of `models.load.engine_environment`."""

    def __init__(self, bundle: Bundle, catalogue: Shown):
        """catalogue: what questions need of items. Loads the weights, which takes from half a minute to minutes."""
        import vllm
        from vllm.lora.request import LoRARequest

        config = bundle.config
        rank = max(config.tune_recommender.lora.rank, config.tune_summarizer.lora.rank if bundle.summarizer else 0)
        lora = {"enable_lora": True, "max_loras": 1 + bool(bundle.summarizer), "max_lora_rank": rank}
        arguments = engine_arguments(config, **lora)
        self._engine = vllm.AsyncLLMEngine.from_engine_args(
            vllm.AsyncEngineArgs(model=source(config.model), **arguments), stat_loggers=_stat_loggers()
        )
        self._recommender = LoRARequest("recommender", _RECOMMENDER, bundle.adapter)
        self._summarizer = bundle.summarizer and LoRARequest("summarizer", _SUMMARIZER, bundle.summarizer)
        self._asker, self._renderer = Asker(config, catalogue), Renderer(config)
        self._number = itertools.count()

    async def score(
        self,
        history: Sequence[int],
        neighbours: Sequence[int],
        liked: Sequence[str],
        candidates: Sequence[int],
        evidence: Sequence[str],
    ) -> list[float]:
        """p(yes) of each candidate, in [0, 1]: what `rank.score` computes in bulk. liked and evidence are
        what prompts say of the user's segments and of each candidate; the others hold numbers of items.

        Raises InputError where a question does not fit the model. Cancelled, it takes its questions back.
        """
        # Tokens and pictures are worked out in a thread: the loop stays free for other requests' answers.
        asked = await asyncio.to_thread(self._questions, (history, neighbours, liked), candidates, evidence)
        return await asyncio.gather(*(self._score(tokens, question) for tokens, question in asked))

    async def summarise(self, item: dict[str, Any]) -> Keywords:
        """Keywords of an item: a row with title, text, image, image_uri.

        Raises ValueError or OSError where it cannot be rendered or the answer does not parse.
        """
        request = await asyncio.to_thread(self._renderer, item)
        output = await self._generate(request.tokens, request.image, _parameters(request.sampling), self._summarizer)
        return parse(output.outputs[0].text, request.image is not None, request.has_text)

    async def check_health(self) -> None:
        """Raises where the engine has died."""
        await self._engine.check_health()

    def _questions(
        self,
        user: tuple[Sequence[int], Sequence[int], Sequence[str]],
        candidates: Sequence[int],
        evidence: Sequence[str],
    ) -> list[tuple[list[int], Question]]:
        read = self._asker.user(*user)
        asked = zip(candidates, evidence, strict=True)
        questions = [self._asker.question(read, candidate, said) for candidate, said in asked]
        return list(zip(self._asker.tokens(questions), questions, strict=True))

    async def _score(self, tokens: list[int], question: Question) -> float:
        output = await self._generate(tokens, question.image, _parameters(self._asker.sampling), self._recommender)
        said = output.outputs[0].logprobs[0]
        yes, no = (said[token].logprob for token in self._asker.answers)
        return p_yes(yes, no)

    async def _generate(self, tokens: list[int], image: Image.Image | None, parameters: Any, adapter: Any) -> Any:
        from vllm.inputs.llm import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=tokens)
        if image is not None:
            prompt["multi_modal_data"] = {"image": image}
        request = str(next(self._number))
        async for output in self._engine.generate(prompt, parameters, request_id=request, lora_request=adapter):
            if output.finished:
                return output
        raise RuntimeError("the engine ended without an answer")


def _parameters(sampling: dict[str, Any]) -> Any:
    """vLLM's sampling parameters from the plain ones that bulk jobs send."""
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    plain = dict(sampling)
    if "structured_outputs" in plain:
        plain["structured_outputs"] = StructuredOutputsParams(**plain["structured_outputs"])
    return SamplingParams(**plain)


def _stat_loggers() -> list[Any]:
    """vLLM's own metrics, offered by Ray."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]
