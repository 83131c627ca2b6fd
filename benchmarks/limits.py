"""What limits the recommender on the drawn shop: a plain rule on what the language model reads, then on more.

    python benchmarks/limits.py --config configs/shop.yaml run=…

The rule is a logistic regression that learns from the same examples as the language model: for each attribute, how
many lines of the history and of the similar users' choices name the candidate's keyword, whether the last line does;
and of each kind of evidence the level. First it reads what the model reads, and the evidence alone; then the lines
alone, of which one thing at a time gets better: the keywords are the true ones, the history is longer, the popularity
of the candidate is known. The oracle that knows the law and the history forgets one part of the law at a time, which
tells what each is worth. All rank the test lists of the run, whose stages are made where they are not there yet.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.log import Cases, Log, Sequences, read_log
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.data.shop.generate import item_id, shop_of
from mmsrarec_ray.data.shop.law import VOCABULARY, Shop
from mmsrarec_ray.data.shop.truth import item_keywords
from mmsrarec_ray.evaluate.lists import cases_of, draw_negatives, pool_of
from mmsrarec_ray.evaluate.metrics import Ranks, per_case
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.evaluate.stages import Scores, read_rankings, sampled
from mmsrarec_ray.intervals import interval
from mmsrarec_ray.job import Stage, connect, execute
from mmsrarec_ray.methods.base import Dataset
from mmsrarec_ray.methods.mmsrarec import MmsraRec
from mmsrarec_ray.methods.oracle import HistoryOracle
from mmsrarec_ray.rank.catalogue import Catalogue, line
from mmsrarec_ray.rank.evidence import LEVELS
from mmsrarec_ray.rank.stage import EXAMPLES, TuneRecommender
from mmsrarec_ray.retrieve.stage import Retrieve
from mmsrarec_ray.store import Artefact, Run
from mmsrarec_ray.summarize.stage import Summarize

ATTRIBUTES = ("colour", "pattern", "kind", "material", "use", "brand")
METRICS = ("HR@5", "AUC", "NDCG@5")
REFERENCES = ("random", "popularity", "itemknn", "sasrec", "mmsrarec", "history_oracle")
LONGER = (20, 50)


class Asked(NamedTuple):
    """Users at a moment with candidates. history: their items so far; neighbours: int64 (n, k), what similar users
    chose next, -1 where there are fewer; candidates: int64 (n, c); told: the levels of evidence, as `levels` gives
    them, n * c rows; own: int64 (n, c), how often the counts hold the user's own choice of the candidate."""

    history: Sequences
    neighbours: np.ndarray
    candidates: np.ndarray
    told: np.ndarray
    own: np.ndarray


class Rule(NamedTuple):
    """What a rule knows. words: as `codes` gives them, None: nothing of what is said; length: items of the history;
    counts: an item's interactions; evidence: whether it reads the levels."""

    words: np.ndarray | None
    length: int
    counts: np.ndarray | None = None
    evidence: bool = False


def codes(lines: list[str]) -> np.ndarray:
    """The value of each attribute that the keywords of each item name, -1 where they name none: int8 (n + 1, 6); the
    last row is of no item."""
    places = {word: (a, v) for a, name in enumerate(ATTRIBUTES) for v, word in enumerate(VOCABULARY[name])}
    found = np.full((len(lines) + 1, len(ATTRIBUTES)), -1, np.int8)
    for row, words in enumerate(lines):
        for attribute, value in (places[word] for word in words.split(", ") if word in places):
            found[row, attribute] = value
    return found


def levels(lines: Sequence[str]) -> np.ndarray:
    """Which level each kind of evidence has in some lines of it: 0 or 1, float64 (n, kinds * LEVELS)."""
    if not lines:
        return np.zeros((0, 0))
    found = np.array([re.findall(r" (\d)", line) for line in lines], dtype=np.int64)
    return np.eye(LEVELS)[found].reshape(len(lines), -1)


def features(asked: Asked, rule: Rule) -> np.ndarray:
    """What a rule sees: float64 (n * c, f)."""
    known = [asked.told] if rule.evidence else []
    if rule.words is not None:
        known.append(_shared(asked, rule.words, rule.length))
    if rule.counts is not None:
        known.append(np.log1p(rule.counts[asked.candidates] - asked.own).reshape(-1, 1))
    return np.concatenate(known, axis=1)


def _shared(asked: Asked, said: np.ndarray, length: int) -> np.ndarray:
    """Of each attribute, in how many lines the candidate's word stands: float64 (n * c, f)."""
    own = said[asked.candidates]
    shares = []
    for items in (asked.history.last(length, -1), asked.neighbours):
        there = np.maximum((items >= 0).sum(1), 1)[:, None, None]
        shares.append(_same(said[items], own).sum(1) / there)
    last = _same(said[asked.history.last(1, -1)], own)[:, 0]
    whole = np.concatenate([*shares, last, own < 0], axis=2)
    return whole.reshape(-1, whole.shape[2])


def _same(lines: np.ndarray, own: np.ndarray) -> np.ndarray:
    """bool (n, lines, c, 6)"""
    return (lines[:, :, None] == own[:, None]) & (own >= 0)[:, None]


def artefacts(config: Config) -> dict[str, Artefact]:
    """What the rule reads, made where it is not there."""
    stages: list[Stage] = [Prepare(config), Summarize(config), Retrieve(config), TuneRecommender(config)]
    stages += [Scores(config, name) for name in REFERENCES]
    made = {}
    for stage in stages:
        step, _, _ = execute(stage, Run.at(config.run))
        assert step.artefact is not None
        made[stage.artefact] = step.artefact
    return made


def training(log: Log, made: dict[str, Artefact]) -> tuple[Asked, np.ndarray]:
    """The language model's training examples, one candidate a row, and whether it was chosen: bool (n,)."""
    contexts = read_parts(made["recommender"].folder / EXAMPLES / "train", ["user_id", "cut", "examples"])
    examples = contexts["examples"].combine_chunks()
    rows = pc.list_parent_indices(examples)
    flat = pa.Table.from_struct_array(examples.flatten())
    choice = pc.equal(flat["task"], "choice")
    rows, flat = rows.filter(choice.combine_chunks()).to_numpy(), flat.filter(choice)
    users = pc.index_in(contexts["user_id"], value_set=log.users).to_numpy().astype(np.int64)[rows]
    cuts = contexts["cut"].to_numpy().astype(np.int64)[rows]
    numbers = pc.index_in(flat["item_id"], value_set=log.items).to_numpy().astype(np.int64)
    chosen = pc.equal(flat["answer"], "yes").to_numpy(zero_copy_only=False)
    near = _neighbours(log, made, "train", users, cuts)
    evidence = [re.findall(r"^- (chosen .*)$", prompt, re.MULTILINE)[-1:] for prompt in flat["prompt"].to_pylist()]
    told = levels([line for lines in evidence for line in lines])
    own = chosen.astype(np.int64)[:, None]  # negatives are items that the user never touched
    return Asked(log.sequences.beginnings(users, cuts), near, numbers[:, None], told, own), chosen


def testing(log: Log, made: dict[str, Artefact], config: Config) -> tuple[Asked, Cases]:
    """The test lists, the positive first, with what the language model is told of them, and their cases."""
    cases, pool = cases_of(log), pool_of(log, config.evaluate)
    seed = config.evaluate.seeds[0]
    drawn = draw_negatives(log, cases, pool, config.evaluate.negatives, seed)
    candidates = np.column_stack([cases.positives.astype(np.int64), drawn])
    history = cases.queries.histories
    near = _neighbours(log, made, "test", history.users, history.lengths)
    model = recipe_of("mmsrarec", config).build(seed, log, made)
    assert isinstance(model, MmsraRec)
    model.fit(Dataset(log.n_items, log.train(), log.cases("validation"), pool))
    evidence = model.questions(cases.queries, list(candidates)).evidence
    told = levels([line for lines in evidence for line in lines if line])
    return Asked(history, near, candidates, told, np.zeros_like(candidates)), cases


def forgetful(shop: Shop) -> Iterator[tuple[str, Shop]]:
    """What the law would be without one of its parts."""
    yield "the look", replace(shop, look_utility=np.zeros_like(shop.look_utility))
    yield "the habit", replace(shop, habit_utility=np.zeros_like(shop.habit_utility))
    yield "the circle", replace(shop, circle=np.zeros_like(shop.circle))
    own = np.arange(len(shop))  # only itself, which who has it cannot choose again
    alone = np.repeat(own[:, None], shop.companions.shape[1], axis=1)
    yield "recency", replace(shop, companions=alone, attributes=shop.attributes | {"use": own})


def _neighbours(log: Log, made: dict[str, Artefact], split: str, users: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """What the similar users of these contexts chose next: int64 (n, k)."""
    contexts = read_parts(made["retriever"].folder / "contexts", ["user_id", "cut", "split", "neighbours"])
    contexts = contexts.filter(pc.equal(contexts["split"], split))
    numbers = pc.index_in(contexts["user_id"], value_set=log.users).to_pylist()
    chosen = [[each["next_item_id"] for each in row] for row in contexts["neighbours"].to_pylist()]
    of = dict(zip(zip(numbers, contexts["cut"].to_pylist(), strict=True), chosen, strict=True))
    rows = [of[int(user), int(cut)] for user, cut in zip(users, cuts, strict=True)]
    found = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for row, ids in enumerate(rows):
        found[row, : len(ids)] = pc.index_in(pa.array(ids, pa.string()), value_set=log.items).to_numpy()
    return found


def measured(name: str, values: dict[str, np.ndarray], resamples: int) -> str:
    """A row of the table."""
    columns = np.column_stack([values[metric] for metric in METRICS])
    low, high = interval(columns, resamples, 0)
    told = zip(100 * columns.mean(0), 100 * low, 100 * high, strict=True)
    return f"| {name} | " + " | ".join(f"{mean:.1f} ({a:.1f}–{b:.1f})" for mean, a, b in told) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args()
    config = load(options.config, options.settings)
    if config.data.format != "shop" or not sampled(config):
        parser.error("the rule ranks sampled lists of the drawn shop: data.format=shop, evaluate.protocol=paper")
    connect(config)
    made = artefacts(config)
    log = read_log(made["dataset"].folder)
    train, chosen = training(log, made)
    test, cases = testing(log, made, config)
    catalogue = Catalogue.read(made["dataset"].folder, made["keywords"].folder, "keywords")
    shop = shop_of(config.shop.seed, config.shop.items)
    counts = np.bincount(log.train().items, minlength=log.n_items)

    print("| | " + " | ".join(METRICS) + " |\n|---|---|---|---|")
    for name in REFERENCES:
        table = read_rankings(made[f"scores/{name}"].folder, config.evaluate.seeds[0])
        ranks = Ranks(*(table[column].to_numpy() for column in ("greater", "equal", "others")))
        print(measured(name, per_case(ranks, (5,)), config.evaluate.bootstrap), flush=True)
    for name, rule in rules(config, log, catalogue, shop, counts).items():
        scale = StandardScaler().fit(seen := features(train, rule))
        model = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(seen), chosen)
        scores = model.decision_function(scale.transform(features(test, rule)))
        print(ranked(f"rule, {name}", scores.reshape(test.candidates.shape), config), flush=True)
    for name, less in forgetful(shop):
        scores = np.take_along_axis(HistoryOracle(less).score_all(cases.queries), test.candidates, 1)
        print(ranked(f"history_oracle without {name}", scores, config), flush=True)
    return 0


def rules(config: Config, log: Log, catalogue: Catalogue, shop: Shop, counts: np.ndarray) -> dict[str, Rule]:
    """What is tried."""
    numbers = {item_id(index): index for index in range(len(shop))}
    said = codes(catalogue.words.to_pylist())
    true = codes([line("keywords", None, *item_keywords(shop, numbers[item])) for item in log.items.to_pylist()])
    n = config.retrieve.history
    tried = {}
    if config.rank.evidence:
        tried["all that the model reads"] = Rule(said, n, evidence=True)
        tried["the evidence alone"] = Rule(None, n, evidence=True)
    tried |= {f"the lines alone ({n} items of history)": Rule(said, n)}
    tried |= {"true keywords": Rule(true, n), "and popularity": Rule(said, n, counts)}
    tried |= {f"{length} items of history": Rule(said, length) for length in LONGER}
    return tried | {f"all three ({LONGER[-1]} items)": Rule(true, LONGER[-1], counts)}


def ranked(name: str, scores: np.ndarray, config: Config) -> str:
    """A row of the table. scores: float64 (n, c), the positive's first."""
    ranks = Ranks.of(scores, np.zeros(len(scores), np.int64))
    return measured(name, per_case(ranks, (5,)), config.evaluate.bootstrap)


if __name__ == "__main__":
    sys.exit(main())
