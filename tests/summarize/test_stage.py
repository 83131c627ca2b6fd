"""The summary stage on the real engine: every item accounted for, nothing done twice, nothing lost."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.generate import item_row, truth_row
from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.job import Stage, execute, plan
from mmsrarec_ray.metrics import Metrics
from mmsrarec_ray.store import Artefact, Manifest, Run
from mmsrarec_ray.summarize import stage as stage_module
from mmsrarec_ray.summarize.stage import STAGING, Summarize
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer
from tests.prometheus import seen_panels, server, unfilled

N = 24


@pytest.fixture(scope="module")
def shop() -> law.Shop:
    return law.draw_shop(99, 1200)


def damaged(picture: bytes) -> bytes:
    """A picture whose header is right and whose pixels are cut off: only decoding tells."""
    return picture[: len(picture) // 2]


def catalogue(shop: law.Shop) -> list[dict[str, Any]]:
    """Good items, and one of each that cannot be summarised, or only in half."""
    rows = [item_row(shop, index) for index in range(N)]
    rows[1] |= {"image": None}
    rows[2] |= {"title": None, "text": ""}
    rows[3] |= {"image": None, "title": None, "text": None}
    rows[4] |= {"image": damaged(rows[4]["image"])}
    return rows


class Place:
    """A data folder on this machine, and a run folder wherever `run` says."""

    def __init__(self, folder: Path, run: str):
        self.folder, self.uri = folder, run
        (folder / "data").mkdir(parents=True)

    def write(self, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "data" / "items.parquet")

    def config(self, *words: str) -> Config:
        settings = [f"data.path={self.folder / 'data'}", f"run={self.uri}", "data.interactions=null"]
        return load(None, ["data.format=tables", "engine.batch_size=8", "summarize.rows_per_part=8", *settings, *words])

    @property
    def run(self) -> Run:
        return Run.at(self.uri)

    def summarise(self, *words: str, force: bool = False) -> tuple[Artefact, Manifest, bool]:
        step, manifest, done = execute(Summarize(self.config(*words)), self.run, force)
        assert step.artefact is not None
        return step.artefact, manifest, done


def rows_of(artefact: Artefact, table: str) -> dict[str, dict[str, Any]]:
    files = [name for name in artefact.folder.files() if name.startswith(f"{table}/")]
    tables = [pq.read_table(io.BytesIO(artefact.folder.read_bytes(name))) for name in files]
    rows = [row for each in tables for row in each.to_pylist()]
    key = "item_id" if table == "items" else "id"
    by_id = {row[key]: row for row in rows}
    assert len(by_id) == len(rows), "an item came twice"
    return by_id


@pytest.fixture(scope="module")
def place(s3: tuple[str, str], ray_session: str, tmp_path_factory: pytest.TempPathFactory, shop: law.Shop) -> Place:
    """A run folder on an object store, which knows neither folders nor renaming."""
    bucket, options = s3
    place = Place(tmp_path_factory.mktemp("summaries"), f"{bucket}/summaries{options}")
    place.write(catalogue(shop))
    return place


@pytest.fixture(scope="module")
def first(place: Place) -> tuple[Artefact, Manifest]:
    artefact, manifest, done = place.summarise()
    assert done
    return artefact, manifest


def test_every_item_has_keywords_or_a_reason(first: tuple[Artefact, Manifest]) -> None:
    artefact, manifest = first
    keywords, failures = rows_of(artefact, "items"), rows_of(artefact, "failures")
    assert len(keywords) == N - 2
    assert {name: row["error"] for name, row in failures.items()} == {
        "item-00003": "NothingToSummarise",
        "item-00004": "UnreadableImage",
    }
    assert "expected a picture or a text" in failures["item-00003"]["message"]
    assert manifest.counts == {"in": N, "out": N - 2, "failed": 2, "reused": 0}
    assert STAGING not in artefact.folder.folders()


def test_the_keywords_are_what_the_items_show_and_say(first: tuple[Artefact, Manifest], shop: law.Shop) -> None:
    keywords = rows_of(first[0], "items")
    right = 0
    for index in range(5, N):
        truth, row = truth_row(shop, index), keywords[f"item-{index:05d}"]
        right += set(row["image_keywords"]) == {truth["colour"], truth["pattern"], truth["kind"]}
        assert {truth["material"], truth["use"], truth["brand"]} <= set(row["text_keywords"])
        assert row["tokens"] > 0
        assert row["prompt_version"] == first[1].metrics["prompt_version"]
    assert right >= 0.9 * (N - 5)


def test_an_item_gets_the_half_it_can_have(first: tuple[Artefact, Manifest]) -> None:
    keywords = rows_of(first[0], "items")
    assert keywords["item-00001"]["image_keywords"] == []
    assert keywords["item-00001"]["text_keywords"]
    assert keywords["item-00002"]["text_keywords"] == []
    assert keywords["item-00002"]["image_keywords"]


def test_prometheus_can_read_what_was_done(first: tuple[Artefact, Manifest]) -> None:
    """The stage's own metrics and vLLM's, at the endpoint of the node; other tests may have added to the counters."""
    expected = {
        ("ray_mmsrarec_items_total", "done"): N - 2,
        ("ray_mmsrarec_items_total", "failed"): 2,
        ("ray_mmsrarec_failures_total", "NothingToSummarise"): 1,
        ("ray_mmsrarec_failures_total", "UnreadableImage"): 1,
        ("ray_mmsrarec_tokens_total", ""): 10 * (N - 2),
        ("ray_vllm_prefix_cache_hits_total", ""): 1,
    }
    deadline = time.monotonic() + 60
    while expected and time.monotonic() < deadline:  # values reach the endpoint every few seconds
        time.sleep(1)
        there = scraped()
        expected = {key: least for key, least in expected.items() if there.get(key, 0) < least}
    assert not expected, f"not there yet: {expected} of {there}"


def test_a_prometheus_fills_the_panels_of_jobs(first: tuple[Artefact, Manifest], tmp_path: Path) -> None:
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    stage = Metrics("summarize")  # as one that has still something to do
    stage.known(reused=0, waiting=3)
    with server(tmp_path, targets) as ask, stage.repeated():
        assert not unfilled(ask, seen_panels(of_jobs=True))


def scraped() -> dict[tuple[str, str], float]:
    """What Ray's endpoint tells of the summary stage and of vLLM, by name and by outcome or class of error."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = response.read().decode().splitlines()
    found: dict[tuple[str, str], float] = {}
    for line in lines:
        if line.startswith("ray_vllm_prefix") or (line.startswith("ray_mmsrarec_") and 'stage="summarize"' in line):
            label = re.search(r'(?:outcome|error)="([^"]*)"', line)
            key = line.split("{")[0], label[1] if label else ""
            found[key] = found.get(key, 0.0) + float(line.split()[-1])
    return found


def test_the_contact_sheet_shows_pictures_and_keywords(first: tuple[Artefact, Manifest]) -> None:
    folder = first[0].folder
    page = folder.read_bytes("contact_sheet.html").decode()
    for word in rows_of(first[0], "items")["item-00005"]["image_keywords"]:
        assert f"<span>{word}</span>" in page
    assert page.count("data:image/png;base64,") == N - 3
    with Image.open(io.BytesIO(folder.read_bytes("contact_sheet.png"))) as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(maxcolors=10**7)) > 1000


def test_an_unchanged_catalogue_costs_nothing(place: Place, first: tuple[Artefact, Manifest]) -> None:
    _, manifest, done = place.summarise()
    assert not done
    assert manifest == first[1]


def test_a_changed_catalogue_costs_what_changed(place: Place, first: tuple[Artefact, Manifest], shop: law.Shop) -> None:
    """One item's text changes, one is mended, one is new, one leaves: three are summarised. Another attempt: what has
    failed is tried again."""
    rows = catalogue(shop)
    rows[10] |= {"text": rows[11]["text"], "title": rows[11]["title"]}
    rows[4] = item_row(shop, 4)
    rows = [row for row in rows if row["item_id"] != "item-00020"] + [item_row(shop, N)]
    place.write(rows)
    artefact, manifest, done = place.summarise("summarize.attempt=1")
    assert done
    before, after = rows_of(first[0], "items"), rows_of(artefact, "items")
    assert manifest.counts == {"in": N, "out": N - 1, "failed": 1, "reused": N - 4}
    assert set(rows_of(artefact, "failures")) == {"item-00003"}
    same = {name for name in before if name in after and before[name] == after[name]}
    assert set(before) - same == {"item-00010", "item-00020"}
    assert set(after) - same == {"item-00004", "item-00010", f"item-{N:05d}"}
    place.write(catalogue(shop))


def test_damaged_keywords_are_not_taken_over(place: Place, first: tuple[Artefact, Manifest]) -> None:
    folder, name = place.run.published("keywords")[0].folder, "items/part-00000.parquet"
    whole = folder.read_bytes(name)
    folder.write_bytes(name, whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    try:
        with pytest.raises(ArtefactError, match=r"part-00000\.parquet: expected SHA-256 .* damaged"):
            place.summarise("summarize.attempt=4")
    finally:
        folder.write_bytes(name, whole)


def test_forced_all_is_done_anew(place: Place, first: tuple[Artefact, Manifest]) -> None:
    """Nothing is reused, staged or published, and equal weights, prompts and items give equal keywords."""
    published = rows_of(first[0], "items")
    marked = [row | {"text_keywords": ["kept"]} for row in published.values()]
    schema = pq.read_table(io.BytesIO(first[0].folder.read_bytes("items/part-00000.parquet"))).schema
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(marked, schema), buffer)
    (first[0].folder / STAGING / "keywords").write_bytes("part-0.parquet", buffer.getvalue())
    again, manifest, _ = place.summarise(force=True)
    assert manifest.counts["reused"] == 0
    assert rows_of(again, "items") == published


def test_what_is_forced_and_killed_goes_on_without_what_there_was(
    place: Place, first: tuple[Artefact, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(stage_module, "summarise", killed)
        with pytest.raises(RuntimeError, match="killed"):
            place.summarise("summarize.attempt=5", force=True)
    _, manifest, _ = place.summarise("summarize.attempt=5")
    assert manifest.counts["reused"] == 0


def test_what_decides_the_keywords_decides_the_fingerprint(place: Place) -> None:
    def fingerprint(*words: str) -> str:
        artefact = plan(Summarize(place.config(*words)), place.run)[-1].artefact
        assert artefact is not None
        return artefact.fingerprint

    place.summarise()
    base = fingerprint()
    assert fingerprint("engine.batch_size=4", "summarize.rows_per_part=9", "engine.concurrency=2") == base
    different = [
        fingerprint(word)
        for word in (
            "summarize.max_keywords=4",
            "summarize.temperature=0.5",
            "model.image_size=64",
            "summarize.attempt=3",
        )
    ]
    assert len({base, *different}) == 5


def test_a_cluster_that_is_too_small_is_told_and_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # As shutting down another cluster of this process leaves it (ray.cluster_utils).
    monkeypatch.setattr("ray.experimental.internal_kv.global_gcs_client", None)
    with pytest.raises(ConfigError, match=r"hold 12 logical CPUs and the cluster has 4.*ray\.num_cpus=12"):
        place.summarise("engine.cpus=10", "summarize.attempt=2")


def test_a_prompt_that_leaves_no_room_fails_its_item(place: Place, shop: law.Shop) -> None:
    from mmsrarec_ray.summarize.render import PromptTooLong, Renderer

    row = item_row(shop, 0) | {"image_uri": None, "text": "é" * 2000}
    with pytest.raises(PromptTooLong, match=r"more than model\.max_model_len 2600"):
        Renderer(place.config("model.max_model_len=2600"))(row)


def test_a_picture_takes_its_part_of_the_room(place: Place, shop: law.Shop) -> None:
    from mmsrarec_ray.summarize.render import PromptTooLong, Renderer

    row = item_row(shop, 0) | {"image_uri": None}
    roomy = Renderer(place.config())
    rendered = roomy(row)
    read = roomy.processor(
        text=[roomy.processor.tokenizer.decode(rendered.tokens)], images=[[rendered.image]], add_special_tokens=False
    )
    needed = len(read["input_ids"][0]) + rendered.sampling["max_tokens"]
    assert Renderer(place.config(f"model.max_model_len={needed}"))(row).tokens == rendered.tokens
    with pytest.raises(PromptTooLong):
        Renderer(place.config(f"model.max_model_len={needed - 1}"))(row)


@pytest.mark.parametrize("stage", [Summarize, TuneSummarizer])
def test_answers_that_leave_no_prompt_any_room_are_refused(stage: type[Stage], place: Place) -> None:
    stage(place.config("summarize.max_keywords=9")).check()
    expected = r"summarize\.max_keywords: an answer may take 4205 tokens, and model\.max_model_len, 4096, must hold"
    with pytest.raises(ConfigError, match=expected):
        stage(place.config("summarize.max_keywords=10")).check()


def test_a_manifest_is_json_that_people_can_read(first: tuple[Artefact, Manifest]) -> None:
    tree = json.loads(first[0].folder.read_bytes("manifest.json"))
    assert tree["engine"]["name"] == "vllm"
    assert tree["engine"]["device"] == "cpu"
    assert tree["config"]["model"]["source"] == "tiny"
    assert tree["inputs"].keys() == {"dataset"}
