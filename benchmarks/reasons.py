"""Whether reasons are true: scores without what `why` names of an item, beside scores without as much at random.

    python benchmarks/reasons.py --config configs/shop.yaml run=/runs/shop

For each test user the item that the recommender puts first in the list of `jobs/evaluate.py`, and the reasons that the
service gives for it (`mmsrarec_ray/serve/why.py`), as far as they stand in the prompt. One kind after the other is
taken out: keywords of the history that it shares; the lines of the items of the history that count; among the similar
users' choices the lines that are the item itself; of the words that users of the same segments like, those that it has;
the levels of the evidence that is named, set to 0. Beside it as much
of the same kind, drawn at random from what is not named, `--draws` times. Where nothing or all of a kind is named a
user does not count. A reason is true where its loss lowers the score by more: the mean difference of log odds, with the
95 % interval over users. Makes what is not in the run folder yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Cases, Log, read_log
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.evaluate.lists import cases_of, pool_of
from mmsrarec_ray.evaluate.recipes import MmsraRecRecipe
from mmsrarec_ray.evaluate.stages import Lists, read_negatives, sampled
from mmsrarec_ray.intervals import interval
from mmsrarec_ray.job import connect, execute
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.score import Questions, score
from mmsrarec_ray.serve.catalogue import LiveCatalogue
from mmsrarec_ray.serve.keywords import words_of
from mmsrarec_ray.serve.why import Evidence, Why
from mmsrarec_ray.store import Artefact, Run

_SURE = 1e-6  # log odds of a score nearer to 0 or 1 are those of this


@dataclass(frozen=True)
class Prompt:
    """What a model reads of a user and an item. history, neighbours, liked: lines; evidence: what is said of the
    item."""

    item: int
    history: tuple[str, ...]
    neighbours: tuple[str, ...]
    liked: tuple[str, ...]
    evidence: str


Kind = Callable[[Prompt, Why, Sequence[int]], "Choice"]


@dataclass(frozen=True)
class Choice:
    """Places of one kind in a prompt. named: those that the reasons name; others: the rest; without: the prompt without
    some places."""

    named: list[Any]
    others: list[Any]
    without: Callable[[Sequence[Any]], Prompt]


def keywords(prompt: Prompt, why: Why, history: Sequence[int]) -> Choice:
    """Places: (line, word)."""
    named, others = _places(prompt.history, why.keywords)
    return Choice(named, others, lambda gone: replace(prompt, history=_without(prompt.history, gone)))


def liked(prompt: Prompt, why: Why, history: Sequence[int]) -> Choice:
    """Places: (line, word)."""
    named, others = _places(prompt.liked, [word for keyword in why.liked for word in (keyword, *keyword.split())])
    return Choice(named, others, lambda gone: replace(prompt, liked=_without(prompt.liked, gone)))


def _places(lines: Sequence[str], words: Sequence[str]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(line, word) of these words, and of the others."""
    found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for row, line in enumerate(lines):
        for column, word in enumerate(words_of(line)):
            found[word not in words].append((row, column))
    return found


def _without(lines: Sequence[str], gone: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """The lines without the words at some places."""
    split = [words_of(line) for line in lines]
    left = [[w for column, w in enumerate(words) if (row, column) not in gone] for row, words in enumerate(split)]
    return tuple(", ".join(words) for words in left)


def history_items(ids: Sequence[str]) -> Kind:
    """ids: of all items, by number."""

    def kind(prompt: Prompt, why: Why, history: Sequence[int]) -> Choice:
        counted = {companion.item_id for companion in why.history}
        named = [place for place, item in enumerate(history) if ids[item] in counted]

        def without(gone: Sequence[int]) -> Prompt:
            return replace(prompt, history=_left(prompt.history, gone))

        return Choice(named, [place for place in range(len(history)) if place not in named], without)

    return kind


def similar_users(lines: Sequence[str]) -> Kind:
    """lines: what stands for each item, by number."""

    def kind(prompt: Prompt, why: Why, history: Sequence[int]) -> Choice:
        named = [place for place, line in enumerate(prompt.neighbours) if line == lines[prompt.item]]

        def without(gone: Sequence[int]) -> Prompt:
            return replace(prompt, neighbours=_left(prompt.neighbours, gone))

        return Choice(named, [place for place in range(len(prompt.neighbours)) if place not in named], without)

    return kind


def evidence(prompt: Prompt, why: Why, history: Sequence[int]) -> Choice:
    """Places: clauses of the evidence whose level is not 0."""
    clauses = prompt.evidence.split(", ") if prompt.evidence else []
    there = [place for place, clause in enumerate(clauses) if not clause.endswith(" 0")]
    given = {
        "with this history": bool(why.history),
        "for its keywords": bool(why.liked),
        "by similar users": why.similar_users > 0,
    }
    named = [place for place in there if any(said in clauses[place] and named for said, named in given.items())]

    def without(gone: Sequence[int]) -> Prompt:
        left = [c.rsplit(" ", 1)[0] + " 0" if place in gone else c for place, c in enumerate(clauses)]
        return replace(prompt, evidence=", ".join(left))

    return Choice(named, [place for place in there if place not in named], without)


def _left(lines: Sequence[str], gone: Sequence[int]) -> tuple[str, ...]:
    return tuple(line for place, line in enumerate(lines) if place not in gone)


class Scorer:
    """The recommender on prompts that no user has: lines of the catalogue's items, changed ones as further items."""

    def __init__(self, method: MmsraRec):
        self.method = method

    def __call__(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Log odds of yes: float64 (n,)."""
        known = self.method.catalogue
        words = dict.fromkeys(known.words.to_pylist())
        more = dict.fromkeys(line for prompt in prompts for line in (*prompt.history, *prompt.neighbours))
        new = [line for line in more if line not in words]
        lines = [*known.words.to_pylist(), *new]
        numbers = {line: number for number, line in enumerate(lines)}
        catalogue = Catalogue(known.ids, pa.array(lines, pa.string()), known.shown)
        found = score(
            self.method.config,
            catalogue,
            self.method.adapter,
            Questions(
                [np.array([numbers[line] for line in prompt.history], np.int64) for prompt in prompts],
                [np.array([numbers[line] for line in prompt.neighbours], np.int64) for prompt in prompts],
                [np.array([prompt.item], np.int64) for prompt in prompts],
                [[prompt.evidence] for prompt in prompts],
                [list(prompt.liked) for prompt in prompts],
            ),
        )
        said = np.clip(np.concatenate(found), _SURE, 1 - _SURE)
        return np.log(said / (1 - said))


def recommender(config: Config) -> tuple[MmsraRec, Log, Cases, np.ndarray]:
    """The fitted method, and the test cases with their lists, the positive first: int64 (n, c)."""
    recipe, made = MmsraRecRecipe("mmsrarec", config), dict[str, Artefact]()
    for stage in (Prepare(config), Lists(config), *recipe.requires):
        step, _, _ = execute(stage, Run.at(config.run))
        assert step.artefact is not None
        made[stage.artefact] = step.artefact
    log, seed = read_log(made["dataset"].folder), config.evaluate.seeds[0]
    cases = cases_of(log)
    method = recipe.build(seed, log, made)
    method.fit(Dataset(log.n_items, log.train(), log.cases("validation"), pool_of(log, config.evaluate)))
    negatives = read_negatives(made["lists"].folder, seed, log)
    return method, log, cases, np.column_stack([cases.positives.astype(np.int64), negatives])


def recommended(method: MmsraRec, cases: Cases, lists: np.ndarray) -> tuple[list[Prompt], list[Why], Questions]:
    """The first item of each list by the recommender: its prompt and its reasons."""
    first = lists[np.arange(len(lists)), method.score(cases.queries, lists).argmax(1)]
    told = method.questions(cases.queries, [np.array([item]) for item in first])
    live = LiveCatalogue(method.catalogue, method.config.rank.said)
    retriever = method.retrieval.retriever
    moments = retriever.index.moments
    found = retriever.nearest(cases.queries, method.config.methods.retrieval.neighbours).rows
    segments = method.segments.whole if method.segments else None
    prompts, reasons = [], []
    for row, item in enumerate(first.tolist()):
        history = told.histories[row].tolist()
        near = found[row][found[row] >= 0]
        reasons += Evidence(live, retriever.cooccurrence, segments, history, moments, near).why([item])
        before, others = (tuple(live.lines(each)) for each in (history, told.neighbours[row]))
        prompts.append(Prompt(item, before, others, tuple(told.liked[row]), told.evidence[row][0]))
    return prompts, reasons, told


def fall(scorer: Scorer, whole: np.ndarray, choices: dict[int, Choice], draws: int, seed: int) -> np.ndarray:
    """By how much the score falls without what is named, and without as much at random: float64 (n, 2)."""
    rng = np.random.default_rng(seed)
    prompts, drawn = [], []
    for choice in choices.values():
        places = (choice.named, choice.others)
        size = min(map(len, places))
        for _ in range(draws):
            named, others = ([each[at] for at in rng.permutation(len(each))[:size]] for each in places)
            prompts.append(choice.without(named))
            drawn.append(choice.without(others))
    rows = np.repeat(list(choices), draws)
    falls = [(whole[rows] - scorer(each)).reshape(-1, draws).mean(1) for each in (prompts, drawn)]
    return np.column_stack(falls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    if not sampled(config):
        parser.error("the first of a sampled list is looked at: evaluate.protocol=paper")
    connect(config)
    method, log, cases, lists = recommender(config)
    prompts, reasons, told = recommended(method, cases, lists)
    scorer = Scorer(method)
    whole = scorer(prompts)
    kinds: dict[str, Kind] = {
        "keywords shared with the history": keywords,
        "items of the history that count": history_items(log.items.to_pylist()),
        "the item among similar users' choices": similar_users(method.catalogue.words.to_pylist()),
        "what users of the same segments like": liked,
        "evidence": evidence,
    }
    print(f"{len(prompts):,} users; mean log odds of the first item {whole.mean():.2f}\n")
    print("| taken out | users | named | at random | difference |\n|---|---|---|---|---|")
    for name, kind in kinds.items():
        choices = {}
        for row, (prompt, why) in enumerate(zip(prompts, reasons, strict=True)):
            choice = kind(prompt, why, told.histories[row].tolist())
            if choice.named and choice.others:
                choices[row] = choice
        if not choices:
            print(f"| {name} | 0 | | | |")
            continue
        falls = fall(scorer, whole, choices, options.draws, config.evaluate.seeds[0])
        values = np.column_stack([falls, falls[:, 0] - falls[:, 1]])
        low, high = interval(values, config.evaluate.bootstrap, 0)
        said = zip(values.mean(0), low, high, strict=True)
        print(f"| {name} | {len(choices):,} | " + " | ".join(f"{m:.3f} [{a:.3f}, {b:.3f}]" for m, a, b in said) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
