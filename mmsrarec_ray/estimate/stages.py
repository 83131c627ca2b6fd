"""Memory and time of the stages that ask or teach the model, from settings and counts alone. Nothing is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.estimate.machine import ACTIVATIONS, GATHERED, GIB, Engines, Trainers
from mmsrarec_ray.estimate.shapes import Shapes
from mmsrarec_ray.settings import Tuning
from mmsrarec_ray.store import Manifest

_PARTS_OF_ANSWER = 6  # tokens of "image: ; text: " and the end
REWARD_BATCH = 32
"""Texts that the frozen model reads at a time (`summarize.tuning.reference`)."""
BLEND_CASES = 2_000
"""Validation cases that blends learn their weights from, at most (`methods.blend`)."""
_BLENDS = "mmsrarec+"
_SHARE, _LOGITS = "vLLM's share", "rewards' logits"  # parts of the memory of tune_summarizer


@dataclass(frozen=True)
class Counts:
    """How much there is to do."""

    items: float
    pictured: float
    """Share of the items with a picture."""
    users: float
    known: bool
    """Whether a dataset told, not `plan.`."""


@dataclass(frozen=True)
class Estimate:
    """What a stage takes. memory: bytes of a GPU at the worst moment, by what they are for; seconds: by kind."""

    gpus: int
    memory: dict[str, float]
    limit: float
    """Bytes of a GPU that the stage may take."""
    tokens_in: float
    tokens_out: float
    flops: float
    seconds: dict[str, float]
    note: str
    """What else a planner should know."""
    smaller: dict[str, str]
    """What makes a part of the memory smaller; parts that no setting does are left out."""
    refused: str = ""
    """Why it would not start though there is memory."""

    @property
    def needed(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit and not self.refused

    @property
    def advice(self) -> str:
        """Where it does not fit: what makes the largest part smaller, of those that can be made so."""
        if self.needed - sum(self.memory[part] for part in self.smaller) > self.limit:
            return "take a GPU with more memory (plan.gpu), or a smaller model"
        return self.smaller[max(self.smaller, key=lambda part: self.memory[part])]

    @property
    def hours(self) -> float:
        return sum(self.seconds.values()) / 3600


def counts_of(config: Config, dataset: Manifest | None) -> Counts:
    """dataset: the manifest of the run's dataset, None where there is none yet."""
    if dataset is None:
        return Counts(config.plan.items, 1.0, config.plan.users, False)
    told = dataset.metrics
    without = told["missing_images"] + told["unfetched_images"]  # prompts have a picture of neither
    return Counts(told["items"], 1 - without / max(1, told["items"]), told["users"], True)


def users_of(config: Config, counts: Counts, split: str) -> float:
    """Users with a case of a split ('train', 'validation', 'test'). Split by time, at most all have one."""
    if config.split.users != "ratio":
        return counts.users
    validation, test = config.split.validation, config.split.test
    return counts.users * {"train": 1 - validation - test, "validation": validation, "test": test}[split]


@dataclass(frozen=True)
class Prompt:
    """A prompt, its picture's tokens included."""

    tokens: float
    """On average: what takes time."""
    longest: float
    """What memory must be there for: with a picture, where there are any."""
    patches: float
    """On average."""
    most_patches: float
    """Where there is a picture."""


class Prompts:
    """Lengths of what the model reads and writes."""

    def __init__(self, config: Config, shapes: Shapes, pictured: float):
        self.config, self.plan, self.shapes, self.pictured = config, config.plan, shapes, pictured

    def text(self, limit: int) -> float:
        """Title and text of an item, cut at `limit` characters."""
        return min(self.plan.text_chars, limit) / self.plan.chars_per_token

    def _patches(self) -> float:
        """Of a picture; 0 where no item has one."""
        given = self.plan.picture_tokens
        whole = given * self.shapes.merge**2 if given else self.shapes.patches(self.config.model.image_size)
        return whole if self.pictured else 0

    @property
    def line(self) -> float:
        """Keywords of an item."""
        return 2 * self.config.summarize.max_keywords * self.plan.keyword_tokens

    @property
    def answer(self) -> float:
        """A summary."""
        return self.line + _PARTS_OF_ANSWER

    def item(self) -> Prompt:
        """The question for an item's keywords."""
        return self._with_picture(self.plan.template_tokens, self.config.summarize.max_text_chars)

    def _with_picture(self, before: float, limit: int) -> Prompt:
        most, merged = self._patches(), self.shapes.merge**2
        mean = self.pictured * most
        longest = before + most / merged + limit / self.plan.chars_per_token
        return Prompt(before + mean / merged + self.text(limit), longest, mean, most)

    def user(self) -> float:
        """The part that a user's candidates share."""
        lines = self.config.retrieve.history + self.config.retrieve.neighbours
        liked = 2 * self.config.rank.liked * self.plan.keyword_tokens
        return self.plan.template_tokens + lines * self.line + liked

    def candidate(self) -> Prompt:
        """What differs between a user's candidates."""
        form, limit = self.config.rank.candidate, self.config.rank.max_text_chars
        if form == "keywords":
            return Prompt(self.line, self.line, 0, 0)
        if form == "text":
            return Prompt(self.text(limit), limit / self.plan.chars_per_token, 0, 0)
        return self._with_picture(0, limit)


def summarize(config: Config, shapes: Shapes, counts: Counts) -> Estimate:
    """Every item is asked about once."""
    engines, words = _engines(config, shapes), Prompts(config, shapes, counts.pictured)
    prompt, answer = words.item(), words.answer
    each = shapes.text_flops(prompt.tokens) + shapes.picture_flops(prompt.patches)
    written = answer * (shapes.text_flops(1, prompt.tokens + answer / 2) + shapes.head_flops(1))
    seconds = {
        "prefill": engines.prefill_seconds(counts.items * each, counts.items * prompt.tokens),
        "decode": engines.decode_seconds(counts.items, prompt.tokens, answer),
    }
    tokens = (counts.items * prompt.tokens, counts.items * answer)
    return _answered(config, engines, tokens, counts.items * (each + written), seconds)


def score(config: Config, shapes: Shapes, counts: Counts) -> Estimate:
    """Every candidate of every case, one pass each, for `mmsrarec` and its blends together; with prefix caching a
    user's part is read once for all candidates of a pass."""
    engines, words = _engines(config, shapes), Prompts(config, shapes, counts.pictured)
    users, requests = _questions(config, counts)
    shared, own = words.user(), words.candidate()
    block = config.engine.block_size
    cached = shared // block * block if config.engine.prefix_caching else 0
    fresh = shared - cached + own.tokens
    each = shapes.text_flops(fresh, cached) + shapes.picture_flops(own.patches) + shapes.head_flops(1)
    flops, tokens = users * shapes.text_flops(cached) + requests * each, users * cached + requests * fresh
    seconds = {"prefill": engines.prefill_seconds(flops, tokens)}
    return _answered(config, engines, (tokens, requests), flops, seconds)


def _questions(config: Config, counts: Counts) -> tuple[float, float]:
    """Times that a user's part is read, and candidates that are asked about. No question is asked twice
    (`rank.answers`): of a further seed the drawn negatives alone are new."""
    e, seeds = config.evaluate, len(config.evaluate.seeds)
    users, drawn = users_of(config, counts, "test"), seeds if e.protocol == "paper" else 0
    read, asked = users * max(1, drawn), users * (min(1, drawn) + drawn * e.negatives + config.rank.shortlist)
    if any(name.startswith(_BLENDS) for name in e.methods):
        learnt = seeds * min(BLEND_CASES, users_of(config, counts, "validation"))
        read, asked = read + learnt, asked + learnt * (1 + config.methods.blend.negatives)
    return read, asked


def _engines(config: Config, shapes: Shapes) -> Engines:
    if not config.engine.gpus:
        raise ConfigError("its engines ask for no GPU (engine.gpus)")
    return Engines.of(config, shapes)


def _answered(
    config: Config, engines: Engines, tokens: tuple[float, float], flops: float, seconds: dict[str, float]
) -> Estimate:
    memory = engines.memory(config.model.max_model_len)
    note = f"an engine's KV cache: {max(0, engines.kv_tokens):,.0f} tokens"
    return Estimate(engines.gpus, memory, engines.limit, *tokens, flops, seconds, note, engines.smaller())


def tune_recommender(config: Config, shapes: Shapes, counts: Counts) -> Estimate:
    """Each context is learnt from `epochs` times; those of the validation users are read once, at the end, choices
    alone."""
    tuning, words = config.tune_recommender, Prompts(config, shapes, counts.pictured)
    trainers = _trainers(config, tuning, shapes)
    whole = sequences(config, words)
    train = users_of(config, counts, "train") * config.retrieve.train_cuts * tuning.epochs
    validation = users_of(config, counts, "validation")
    learnt = train * sum(times * trainers.flops(each.tokens, each.patches, 1) for each, times in whole)
    (asked, asked_times), *_ = whole
    judged = validation * asked_times * (shapes.text_flops(asked.tokens) + shapes.picture_flops(asked.patches))
    micro = trainers.count * trainers.micro_batch
    seconds = {
        "training": trainers.seconds(learnt),
        "validation": trainers.seconds(judged),
        "ZeRO-3 gathers": trainers.passes_gathered(train / micro, validation / micro),
    }
    memory = trainers.states() | {
        GATHERED: trainers.gathered(),
        ACTIVATIONS: trainers.activations(
            sum(times * each.longest for each, times in whole), sum(times * each.most_patches for each, times in whole)
        ),
    }
    smaller = trainers.smaller("tune_recommender")
    total = train * sum(times * each.tokens for each, times in whole) + validation * asked_times * asked.tokens
    note = trainers.loading(1)
    return Estimate(trainers.count, memory, trainers.limit, total, 0, learnt + judged, seconds, note, smaller)


def sequences(config: Config, words: Prompts) -> list[tuple[Prompt, float]]:
    """What is learnt from a context: sequences, with how many there are of each, the choices first."""
    tuning, candidate, user, item = config.tune_recommender, words.candidate(), words.user(), words.item()
    offered, tasks = 1 + tuning.negatives, tuning.tasks
    told = tasks.next_item + tasks.interests  # behind the user's part, each with a line for an answer
    described = replace(item, tokens=item.tokens + words.line, longest=item.longest + words.line), tasks.item_keywords
    if tuning.shared_prefix:
        before, patches = user + told * words.line, (offered * candidate.patches, offered * candidate.most_patches)
        lengths = before + offered * candidate.tokens, before + offered * candidate.longest
        return [(Prompt(*lengths, *patches), 1.0), described]
    choice = replace(candidate, tokens=user + candidate.tokens, longest=user + candidate.longest), float(offered)
    return [choice, (Prompt(user + words.line, user + words.line, 0, 0), told), described]


def _trainers(config: Config, tuning: Tuning, shapes: Shapes) -> Trainers:
    if not config.train.gpu:
        raise ConfigError("its workers ask for no GPU (train.gpu)")
    return Trainers(shapes, config.plan, tuning, config.train.workers)


def tune_summarizer(config: Config, shapes: Shapes, counts: Counts) -> Estimate:
    """`steps` updates from `batch_size` sampled answers each. What evaluations on the way and at the end answer is left
    out."""
    s, words = config.tune_summarizer, Prompts(config, shapes, counts.pictured)
    trainers = _trainers(config, s, shapes)
    prompt, answers = words.item(), s.steps * s.batch_size
    tokens, written = prompt.tokens + s.max_tokens, s.max_tokens  # the longest answers, which batches wait for
    sampler = _sampler(config, trainers)
    read = shapes.text_flops(tokens) + shapes.head_flops(written) + shapes.picture_flops(prompt.patches)
    asked = shapes.text_flops(prompt.tokens) + shapes.picture_flops(prompt.patches)
    said = written * (shapes.text_flops(1, prompt.tokens + written / 2) + shapes.head_flops(1))
    passes = (s.beta > 0) + (s.generation != "transformers")  # of the untuned model; of the policy, for its old odds
    learnt = answers * trainers.flops(tokens, prompt.patches, written)
    judged = answers * (passes * read + _reward_flops(config, shapes, words, prompt))
    micro = answers / (trainers.count * trainers.micro_batch)
    seconds = {
        "training": trainers.seconds(learnt),
        "odds and rewards": trainers.seconds(judged),
        "ZeRO-3 gathers": trainers.passes_gathered(micro, passes * micro),
    }
    if sampler:
        seconds["prefill"] = sampler.prefill_seconds(answers * asked, answers * prompt.tokens)
        seconds["decode"] = s.steps * sampler.decode_seconds(s.batch_size, prompt.tokens, written)
        seconds["weights to the sampler"] = trainers.gather_seconds(s.steps) if trainers.zero == 3 else 0.0
    flops = learnt + judged + (answers * (asked + said) if sampler else 0)
    memory = _grpo_memory(config, trainers, sampler, words)
    smaller = _grpo_smaller(config, trainers, sampler, memory)
    total, note, refused = (answers * prompt.tokens, answers * written), trainers.loading(2), _refused(config, sampler)
    return Estimate(trainers.count, memory, trainers.limit, *total, flops, seconds, note, smaller, refused)


def _sampler(config: Config, trainers: Trainers) -> Engines | None:
    """Who samples on the workers' GPUs, an engine each; None where a server elsewhere does."""
    s = config.tune_summarizer
    if s.generation == "vllm_server":
        return None
    share = s.vllm_memory if s.generation == "vllm_colocate" else 1.0
    return Engines(trainers.shapes, config.plan, trainers.count, 1, s.batch_size // trainers.count, share)


def _refused(config: Config, sampler: Engines | None) -> str:
    """What vLLM says to a share in which it cannot work."""
    if sampler is None or config.tune_summarizer.generation != "vllm_colocate":
        return ""
    needed = sampler.needed(config.model.max_model_len)
    if needed <= sampler.limit:
        return ""
    return (
        f"vLLM needs {needed / GIB:.1f} GiB (weights, overhead, one sequence of model.max_model_len), and "
        f"tune_summarizer.vllm_memory gives it {sampler.limit / GIB:.1f}"
    )


def _reward_flops(config: Config, shapes: Shapes, words: Prompts, prompt: Prompt) -> float:
    """Of the frozen model that rewards ask, an answer: its text after its keywords and after none; its keywords before
    its own picture and before another's."""
    s = config.tune_summarizer
    text = words.text(config.summarize.max_text_chars)
    read = shapes.text_flops(2 * text + words.line) + shapes.head_flops(2 * text)
    seen = shapes.text_flops(config.plan.template_tokens + prompt.patches / shapes.merge**2 + words.line)
    looked = 2 * (seen + shapes.picture_flops(prompt.patches) + shapes.head_flops(words.line))
    looks = s.reward == "grounded" and s.grounded.grounding > 0
    return (read if _reads_text(config) else 0) + (looked if looks else 0)


def _reads_text(config: Config) -> bool:
    """Whether a reward asks the frozen model for texts."""
    s = config.tune_summarizer
    weight = s.grounded.prediction if s.reward == "grounded" else s.paper.beta
    return s.reference is None and weight > 0


def _grpo_memory(config: Config, trainers: Trainers, sampler: Engines | None, words: Prompts) -> dict[str, float]:
    """At the worst of three moments: while it learns; while ZeRO-3 has the whole policy together, for vLLM to take it
    over or to answer itself; while rewards have the logits of texts, in 16 and in 32 bit."""
    s, shapes, prompt = config.tune_summarizer, trainers.shapes, words.item()
    memory = trainers.states() | {"frozen model of the rewards": shapes.weights}
    if s.generation == "vllm_colocate" and sampler:
        memory[_SHARE] = sampler.limit
    text = words.line + config.summarize.max_text_chars / config.plan.chars_per_token
    learning = trainers.activations(prompt.longest + s.max_tokens, prompt.most_patches)
    moments: list[dict[str, float]] = [
        {GATHERED: trainers.gathered(), ACTIVATIONS: learning},
        {"the policy together": shapes.weights if trainers.zero == 3 else 0},
        {_LOGITS: REWARD_BATCH * text * shapes.vocabulary * (shapes.width + 4) if _reads_text(config) else 0},
    ]
    return memory | max(moments, key=lambda moment: sum(moment.values()))


def _grpo_smaller(
    config: Config, trainers: Trainers, sampler: Engines | None, memory: dict[str, float]
) -> dict[str, str]:
    """What makes the parts that are there smaller."""
    elsewhere = "sample by a vllm_server (tune_summarizer.generation)"
    said = trainers.smaller("tune_summarizer") | {
        _SHARE: elsewhere,
        _LOGITS: "lower summarize.max_text_chars, or take tune_summarizer.reference=words",
    }
    if _SHARE in memory and sampler:
        least = math.ceil(100 * sampler.needed(config.model.max_model_len) / sampler.gpu.memory) / 100
        if least < config.tune_summarizer.vllm_memory:
            said[_SHARE] = f"lower tune_summarizer.vllm_memory, to {least:.2f} at the least, or {elsewhere}"
    return {part: what for part, what in said.items() if part in memory}


ESTIMATED: dict[str, Callable[[Config, Shapes, Counts], Estimate]] = {
    "summarize": summarize,
    "tune_summarizer": tune_summarizer,
    "tune_recommender": tune_recommender,
    "score mmsrarec": score,
}
