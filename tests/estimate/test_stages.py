"""What a dry run says of stages on GPUs: a line for each, by hand where it is short, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsrarec_ray.config import load
from mmsrarec_ray.estimate import table
from mmsrarec_ray.estimate.shapes import Shapes
from mmsrarec_ray.estimate.stages import (
    BLEND_CASES,
    REWARD_BATCH,
    Counts,
    Estimate,
    counts_of,
    score,
    summarize,
    tune_recommender,
    tune_summarizer,
    users_of,
)
from mmsrarec_ray.estimate.table import Estimates
from mmsrarec_ray.job import main
from mmsrarec_ray.methods import blend
from mmsrarec_ray.pipeline import Pipeline
from mmsrarec_ray.store import Manifest
from mmsrarec_ray.summarize.tuning import reference
from tests.estimate.conftest import ROOT, gpu

MILLION = Counts(1e6, 1.0, 1e6, False)
OURS = ("summarize", "tune_summarizer", "tune_recommender", "score mmsrarec")


@pytest.fixture
def told(qwen: Shapes, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The estimates of configs/gpu.yaml with some settings, without building the model each time."""
    monkeypatch.setattr(table, "shapes_of", lambda model: qwen)
    return lambda *words, stages=("prepare", *OURS): Estimates.of(gpu(*words), stages, None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    items = {"item_id": ["i"], "title": ["a"], "text": ["b"], "image": [None]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}), folder / "interactions.parquet")
    return folder


def test_the_dry_run_of_the_gpu_configuration_has_a_line_for_each_stage(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(ROOT / "configs" / "gpu.yaml"), f"data.path={data}", f"run={tmp_path / 'run'}"]
    assert main(Pipeline, [*words, "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    after = lines[lines.index("Estimate, not measured (docs/plan.md):") :]
    planned = {step["stage"]: step for step in json.loads(last)["plan"]}
    assert set(OURS) < set(planned)
    [rest] = [line for line in after if line.startswith("  not estimated, as they do not ask the model: ")]
    others = rest.split(": ")[1].split(", ")
    assert set(others) == set(planned) - set(OURS)
    for stage in OURS:
        [row] = [line for line in after if line.startswith(f"  {stage}  ")]
        assert " yes " in row
    assert {stage for stage, step in planned.items() if "estimate" in step} == set(OURS)
    assert all(planned[stage]["estimate"]["fits"] for stage in OURS), "the configuration must hold together"
    assert {planned[stage]["estimate"]["gpus"] for stage in OURS} == {8}
    assert not (tmp_path / "run").exists()


def test_without_a_gpu_nothing_is_made_up() -> None:
    config = load(ROOT / "configs" / "demo.yaml", ["run=/tmp/run"])
    assert Estimates.of(config, ["summarize"], None).text().startswith("Estimate: none")


def test_an_unknown_model_and_a_dtype_without_a_peak_are_said() -> None:
    unknown = gpu("model.source=nobody/nothing", "model.revision=main")
    assert "summarize: not estimated: model.source: the shapes" in Estimates.of(unknown, ["summarize"], None).text()
    assert "model.dtype is float32" in Estimates.of(gpu("model.dtype=float32"), ["summarize"], None).text()


def test_a_model_that_does_not_fit_is_said_with_what_helps(told: Any) -> None:
    small = told("plan.gpu=L4-24GB", "engine.tensor_parallel_size=1", "engine.gpus=1")
    text = small.text()
    assert "summarize DOES NOT FIT: it needs 20.9 GiB a GPU and may take 20.6 of one L4-24GB: raise engine" in text
    assert "tune_summarizer DOES NOT FIT" in text
    assert small.summary("summarize")["estimate"]["hours"] is None
    assert "DOES NOT FIT" not in told().text()


# One worker with the defaults of a fine-tuning, which are for small models.
LARGE = ("train.workers=1", "tune_summarizer.batch_size=64", "tune_summarizer.deepspeed=null")
PLAIN = (*LARGE, "tune_summarizer.gradient_checkpointing=false", "tune_summarizer.generation=transformers")
OFFERED = (*LARGE, "tune_recommender.deepspeed=null", "tune_recommender.gradient_checkpointing=true")


@pytest.mark.parametrize(
    ("stage", "words", "advice", "helps"),
    [
        (
            *("tune_summarizer", (*PLAIN, "tune_summarizer.micro_batch_size=32")),
            "lower tune_summarizer.micro_batch_size below 32, or set tune_summarizer.gradient_checkpointing=true",
            ("tune_summarizer.micro_batch_size=8", "tune_summarizer.gradient_checkpointing=true"),
        ),
        (
            *("tune_summarizer", (*PLAIN, "tune_summarizer.micro_batch_size=1", "plan.gpu=L40S-48GB")),
            "take tune_summarizer.deepspeed=zero3 and more workers (train.workers)",
            ("tune_summarizer.deepspeed=zero3", "train.workers=8"),
        ),
        (
            *("tune_summarizer", ("summarize.max_text_chars=4000", "tune_summarizer.deepspeed=zero2")),
            "lower summarize.max_text_chars, or take tune_summarizer.reference=words",
            ("summarize.max_text_chars=2000",),
        ),
        (
            *("tune_summarizer", ("tune_summarizer.vllm_memory=0.6",)),
            "lower tune_summarizer.vllm_memory, to 0.29 at the least, or sample by a vllm_server "
            "(tune_summarizer.generation)",
            ("tune_summarizer.vllm_memory=0.29",),
        ),
        (
            *("tune_summarizer", ("plan.gpu=L40S-48GB",)),
            "sample by a vllm_server (tune_summarizer.generation)",
            ("tune_summarizer.generation=vllm_server",),
        ),
        (
            *("tune_summarizer", ("plan.gpu=L4-24GB",)),
            "take a GPU with more memory (plan.gpu), or a smaller model",
            ("plan.gpu=H100-80GB",),
        ),
        (
            *("tune_recommender", ("tune_recommender.micro_batch_size=8",)),
            "lower tune_recommender.micro_batch_size below 8, or set tune_recommender.gradient_checkpointing=true",
            ("tune_recommender.micro_batch_size=2",),
        ),
        (
            *("tune_recommender", (*OFFERED, "plan.gpu=L4-24GB", "plan.reserve_gib=7")),
            "take tune_recommender.deepspeed=zero3 and more workers (train.workers)",
            ("tune_recommender.deepspeed=zero3", "train.workers=8"),
        ),
        (
            *("summarize", ("plan.gpu=L4-24GB", "engine.tensor_parallel_size=1", "engine.gpus=1")),
            "raise engine.tensor_parallel_size and engine.gpus",
            ("engine.tensor_parallel_size=2", "engine.gpus=2"),
        ),
        (
            *("summarize", ("model.max_model_len=4000000",)),
            "lower model.max_model_len, or raise engine.tensor_parallel_size and engine.gpus",
            ("model.max_model_len=8192",),
        ),
    ],
)
def test_advice_follows_the_largest_part_and_helps(
    told: Any, stage: str, words: tuple[str, ...], advice: str, helps: tuple[str, ...]
) -> None:
    large = told(*words)
    assert f"{large.config.plan.gpu}: {advice}." in large.text()
    found = large.stages[stage]
    assert (found.fits, found.advice) == (False, advice)
    assert told(*words, *helps).stages[stage].fits


def test_a_share_in_which_vllm_cannot_start_is_said(told: Any) -> None:
    found = told("tune_summarizer.vllm_memory=0.2")
    assert not found.stages["tune_summarizer"].fits
    assert "tune_summarizer.vllm_memory gives it 14.9" in found.text()


def test_a_stage_that_asks_for_no_gpu_is_not_estimated(told: Any) -> None:
    found = told("train.gpu=false").stages
    assert found["tune_recommender"] == "its workers ask for no GPU (train.gpu)"
    assert isinstance(found["summarize"], Estimate)
    assert "prepare" not in found


def test_tokens_and_arithmetic_of_summaries_by_hand(qwen: Shapes) -> None:
    found = summarize(gpu("engine.tensor_parallel_size=1", "engine.gpus=1", "engine.concurrency=8"), qwen, MILLION)
    prompt, answer = 80 + 600 / 4 + 256, 2 * 8 * 3 + 6
    assert (found.tokens_in, found.tokens_out) == (1e6 * prompt, 1e6 * answer)
    each = qwen.text_flops(prompt) + qwen.picture_flops(1024)
    assert found.seconds["prefill"] == pytest.approx(1e6 * each / (8 * 989e12 * 0.3))


def test_a_prefix_is_read_once_for_all_candidates(qwen: Shapes) -> None:
    words = ("rank.candidate=keywords", "retrieve.history=5", "retrieve.neighbours=3")
    found = score(gpu(*words), qwen, MILLION)
    shared, requests = 80 + 8 * 48, 1e5 * (1 + 20 + 20)  # a tenth of the users, negatives, shortlist
    assert found.tokens_in == 1e5 * shared + requests * 48
    apart = score(gpu(*words, "engine.prefix_caching=false"), qwen, MILLION)
    assert apart.tokens_in == requests * (shared + 48)
    assert apart.hours > 5 * found.hours
    liked = score(gpu(*words, "rank.liked=8"), qwen, MILLION)
    assert liked.tokens_in - found.tokens_in == 1e5 * 48  # two lines of eight keywords, as long as one of an item


def test_seeds_ask_about_their_own_negatives_and_nothing_else_again(qwen: Shapes) -> None:
    words = ("rank.candidate=keywords", "retrieve.history=5", "retrieve.neighbours=3")
    twice = score(gpu(*words, "evaluate.seeds=[0, 1]"), qwen, MILLION)
    assert twice.tokens_out == 1e5 * (1 + 2 * 20 + 20)  # the positive, two draws of negatives, the shortlist
    assert twice.tokens_in == 2 * 1e5 * (80 + 8 * 48) + twice.tokens_out * 48
    pool = ("evaluate.protocol=full", "rank.shortlist=200")
    once, five = (score(gpu(*pool, f"evaluate.seeds={seeds}"), qwen, MILLION) for seeds in ([0], [0, 1, 2, 3, 4]))
    assert once.tokens_out == 1e6 * 200
    assert (five.tokens_in, five.tokens_out, five.hours) == (once.tokens_in, once.tokens_out, once.hours)


def test_blends_ask_some_validation_cases_besides(qwen: Shapes) -> None:
    assert BLEND_CASES == blend._CASES
    words = ("rank.candidate=keywords", "retrieve.history=5", "retrieve.neighbours=3", "methods.blend.negatives=7")
    blends = "evaluate.methods=[mmsrarec, mmsrarec+retrieval, mmsrarec+fusion]"
    alone, beside = (score(gpu(*words, *more), qwen, MILLION) for more in ((), (blends,)))
    assert beside.tokens_out - alone.tokens_out == 2_000 * (1 + 7)
    assert beside.tokens_in - alone.tokens_in == 2_000 * (80 + 8 * 48) + 2_000 * 8 * 48
    few = score(gpu(*words, blends, "evaluate.seeds=[0, 1]"), qwen, Counts(1e6, 1.0, 1e3, False))
    assert few.tokens_out == 1e2 * (1 + 2 * 20 + 20) + 2 * 1e2 * (1 + 7)


def test_a_blend_is_work_on_gpus_and_questions_count_once(told: Any) -> None:
    [alone] = told(stages=["score mmsrarec+retrieval"]).stages.values()
    assert isinstance(alone, Estimate)
    found = told(stages=["score random", "score mmsrarec", "score mmsrarec+retrieval", "score mmsrarec+fusion"])
    assert found.others == ["score random"]
    assert found.stages["score mmsrarec"] == alone
    said = "not estimated: its questions are those of score mmsrarec, and asked once"
    for name in ("retrieval", "fusion"):
        assert f"  score mmsrarec+{name}: {said}" in found.text().splitlines()
        assert found.summary(f"score mmsrarec+{name}") == {}


def test_a_recommender_learns_from_each_positive_and_its_negatives(qwen: Shapes) -> None:
    alone = [f"tune_recommender.tasks.{task}=0" for task in ("next_item", "item_keywords", "interests")]
    found = tune_recommender(gpu(*alone), qwen, MILLION)
    user, candidate = 80 + 8 * 48, 500 / 4 + 256
    assert found.tokens_in == pytest.approx((8e5 + 1e5) * 2 * (user + candidate))
    half = tune_recommender(gpu(*alone, "tune_recommender.epochs=0.5"), qwen, MILLION)
    assert half.seconds["training"] == pytest.approx(found.seconds["training"] / 2)
    assert half.seconds["validation"] == found.seconds["validation"]
    shared = tune_recommender(gpu(*alone, "tune_recommender.shared_prefix=true"), qwen, MILLION)
    assert shared.tokens_in == pytest.approx((8e5 + 1e5) * (user + 2 * candidate))
    described = tune_recommender(gpu(*alone, "tune_recommender.tasks.item_keywords=0.5"), qwen, MILLION)
    assert described.tokens_in > found.tokens_in
    assert described.seconds["validation"] == found.seconds["validation"]


def test_rewards_that_ask_no_model_cost_nothing(qwen: Shapes) -> None:
    asked, words = (tune_summarizer(gpu(*more), qwen, MILLION) for more in ((), ("tune_summarizer.reference=words",)))
    assert words.seconds["odds and rewards"] < asked.seconds["odds and rewards"]
    assert words.seconds["training"] == asked.seconds["training"]
    served = tune_summarizer(gpu("tune_summarizer.generation=vllm_server"), qwen, MILLION)
    assert "decode" not in served.seconds
    assert served.needed < asked.needed


def test_logits_of_the_longest_texts_count_in_a_batch_of_the_reference(qwen: Shapes) -> None:
    assert REWARD_BATCH == reference._BATCH
    found = tune_summarizer(gpu("tune_summarizer.deepspeed=zero2"), qwen, MILLION)
    assert found.memory["rewards' logits"] == pytest.approx(32 * (2000 / 4 + 48) * 152064 * (2 + 4))
    whole = tune_summarizer(gpu(), qwen, MILLION)
    assert whole.memory["the policy together"] == qwen.weights, "ZeRO-3 brings the policy together, which is more"
    assert "rewards' logits" not in whole.memory


def test_memory_is_there_for_pictures_though_few_items_have_one(qwen: Shapes) -> None:
    for stage in (tune_summarizer, tune_recommender):
        config = gpu("tune_summarizer.micro_batch_size=32", "tune_summarizer.gradient_checkpointing=false")
        whole, few, none = (stage(config, qwen, replace(MILLION, pictured=share)) for share in (1.0, 0.1, 0.0))
        assert few.needed == pytest.approx(whole.needed)
        assert none.needed < few.needed
        assert none.hours < few.hours < whole.hours


def test_counts_are_those_of_the_dataset_where_it_is_there() -> None:
    dataset = Manifest(
        **dict.fromkeys(("artefact", "fingerprint", "code", "package"), ""),
        **{name: {} for name in ("engine", "config", "inputs", "files", "counts")},
        metrics={"items": 200, "missing_images": 50, "unfetched_images": 30, "users": 30},
        seconds=0,
        created=datetime.now(UTC),
    )
    assert counts_of(gpu(), dataset) == Counts(200, 0.6, 30, True)
    assert "200 items, 30 users (of the dataset)" in Estimates.of(gpu(), ["summarize"], dataset).text()
    assert counts_of(gpu("plan.items=7"), None).items == 7


def test_users_of_a_split() -> None:
    assert users_of(gpu(), MILLION, "train") == pytest.approx(8e5)
    assert users_of(gpu("evaluate.protocol=full"), MILLION, "test") == 1e6, "leave-one-out: everybody has a case"
