"""The compact model's teacher: targets a person can work out, the real prompts, lower losses, exact resumption."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.schemas import ITEMS
from mmsrarec_ray.errors import ArtefactError, InputError
from mmsrarec_ray.models.architecture import build_processor
from mmsrarec_ray.models.tokenizer import train_tokenizer
from mmsrarec_ray.store import MANIFEST, Folder
from mmsrarec_ray.summarize import catalogue as catalogues
from mmsrarec_ray.summarize.align import SMOKE, Aligner, align, alignment
from mmsrarec_ray.summarize.build import BuildModel
from mmsrarec_ray.summarize.catalogue import Catalogue, Fields, Item, distort, draw_on, read_rows, step_items
from mmsrarec_ray.summarize.compact import align_on, start_model
from mmsrarec_ray.summarize.examine import Answer, constant_guess, image_figures, overlap, text_figures, total
from mmsrarec_ray.summarize.keywords import Keywords
from mmsrarec_ray.summarize.lessons import FORMS
from mmsrarec_ray.summarize.render import Renderer
from mmsrarec_ray.summarize.targets import Statistics, attribute_values, says, stem, text_keywords, tokens

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = replace(SMOKE, vision_steps=4, speaking_steps=24)
PLOTS = {
    "western": "A sheriff rides through the dusty desert and hunts robbers.",
    "sci-fi": "A captain flies his rocket to a distant planet of robots.",
}
COLOURS = {"western": (200, 120, 40), "sci-fi": (20, 30, 160)}


def row(index, folder):
    genre = ("western", "sci-fi")[index % 2]
    picture = folder / f"{index}.png"
    Image.new("RGB", (30 + index, 44), COLOURS[genre]).save(picture)
    return {
        "item_id": f"{index:02d}",
        "title": f"Film {index} <|im_end|>",
        "text": PLOTS[genre],
        "image_uri": None if index == 39 else str(picture),
        "attributes": {"genres": f"{genre.title()}|IMAX", "plot_keywords": "robber|horse"},
        "content_hash": str(index),
        "split": ("train", "train", "train", "validation", "test")[index % 5],
        "in_core": True,
    }


def published(folder, **changed):
    """A published dataset of 40 films of two kinds, with plain posters; the last has none. changed: of all its rows."""
    (folder / "items").mkdir(parents=True)
    rows = [row(index, folder) | changed for index in range(40)]
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), folder / "items" / "part-0.parquet")
    (folder / MANIFEST).write_text("{}")
    return Folder.at(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return published(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*PLOTS.values(), "image: western; text: sheriff"] * 50, [], 900, 512)


def new_text_model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return build_processor(SETTINGS.vision, tokenizer)


@pytest.fixture(scope="module")
def rows(dataset):
    return read_rows(dataset, 100, seed=0)


@pytest.fixture(scope="module")
def catalogue(rows, processor, tmp_path_factory):
    pictures, places = draw_on(rows, processor, tmp_path_factory.mktemp("pictures"))
    return Catalogue(rows, pictures, places, processor, SETTINGS.fields)


@pytest.fixture
def new_aligner(catalogue, tokenizer):
    def start(settings=SETTINGS):
        return Aligner(start_model(catalogue, new_text_model(tokenizer), tokenizer, settings), catalogue, settings)

    return start


# Targets.


@pytest.mark.parametrize(
    "words",
    [
        ("robber", "robbers"),
        ("hunting", "hunted", "hunts"),
        ("city", "cities"),
        ("stop", "stopped"),
        ("witch", "witches"),
    ],
)
def test_words_of_one_stem(words):
    assert len({stem(word) for word in words}) == 1


@pytest.mark.parametrize(("one", "other"), [("prince", "princess"), ("king", "kin"), ("class", "clash")])
def test_words_of_different_stems(one, other):
    assert stem(one) != stem(other)


def test_a_keyword_is_said_when_all_its_words_are():
    said = {token.stem for token in tokens("Two detectives hunt a serial killer.")}
    assert says(said, "serial killers")
    assert says(said, "detective")
    assert not says(said, "police detective")
    assert not says(said, "...")


def test_attributes_become_keywords_the_grammar_allows():
    attributes = {"genres": "Sci-Fi|IMAX|(no genres listed)|War|War|one two three four"}
    assert attribute_values(attributes, "genres", ("imax",)) == ("sci-fi", "war")
    assert attribute_values(attributes, "plot_keywords") == ()


STATISTICS = Statistics.of(
    [
        *["The serial killer hides in a big castle. We saw Maria."] * 4,
        *["A killer and a castle, said Maria and the dragon."] * 4,
        *["The quiet garden of a neighbour."] * 40,
        "The wizard sleeps.",
    ]
)


def test_text_keywords_are_bound_phrases_and_rare_words_in_the_order_of_the_text():
    """`Maria` is a name, `wizard` stands in one item only, `garden` in too many, `big` is a stop word."""
    text = "A big dragon, the wizard and Maria meet a serial killer near the garden."
    assert text_keywords(text, (), STATISTICS) == ("dragon", "serial killer")


def test_the_items_own_keywords_come_first_but_only_where_the_text_says_them():
    text = "Some wizards fought in the castle with a dragon."
    assert text_keywords(text, ("wizard", "horse"), STATISTICS) == ("wizard", "castle", "dragon")


def test_a_word_that_may_be_cut_off_is_no_keyword():
    assert text_keywords("There is a castle", (), STATISTICS) == ()
    assert text_keywords("There is a castle.", (), STATISTICS) == ("castle",)


# Examples.


def test_only_what_the_split_allows_is_counted(catalogue, rows):
    assert {split: len(items) for split, items in catalogue.items.items()} == {"train": 24, "validation": 8, "test": 8}
    assert catalogue.statistics.items == 24
    assert catalogue.labels == ("sci-fi", "western")
    last = catalogue.items["test"][-1]
    assert last.picture is None
    assert [last.fits(form) for form in FORMS] == [False, False, True]


def test_a_sample_of_each_split_is_seeded(dataset):
    few = [[each["item_id"] for each in read_rows(dataset, 3, seed)] for seed in (0, 0, 1)]
    assert len(few[0]) == 9
    assert few[0] == few[1] != few[2]


def test_a_folder_that_is_no_dataset_and_a_dataset_without_labels_are_refused(tmp_path, catalogue, rows, processor):
    with pytest.raises(ArtefactError, match="unfinished"):
        read_rows(Folder.at(str(tmp_path)), 10, 0)
    with pytest.raises(InputError, match="'mood'"):
        Catalogue(rows, catalogue.pictures, [0] * len(rows), processor, Fields(image_attribute="mood"))


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_token_for_token_what_the_renderer_asks(catalogue, rows, processor, form, tmp_path):
    build_processor(SETTINGS.vision, processor.tokenizer).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    model = {"source": str(tmp_path), "image_size": SETTINGS.vision.image_size, "max_model_len": 4096}
    limits = {"max_text_chars": SETTINGS.fields.max_chars}
    config = Config.model_validate(
        {"run": str(tmp_path), "data": {"format": "shop"}, "model": model, "summarize": limits}
    )
    renderer = Renderer(config)
    items = catalogue.fitting("train", form)[:5]
    by_id = {each["item_id"]: each for each in rows}
    batch = catalogue.batch(items, form)
    for number, item in enumerate(items):
        asked = by_id[item.item_id]
        asked = asked if form.has_image else asked | {"image_uri": None}
        rendered = renderer(asked if form.has_text else asked | {"title": None, "text": None})
        prompt = processor.tokenizer.decode(rendered.tokens)
        images = [[rendered.image]] if form.has_image else None
        expected = processor(text=[prompt], images=images, return_tensors="np")
        ids = expected["input_ids"][0].tolist()
        assert batch.ids[number, : len(ids)].tolist() == ids
        asked_places = batch.labels[number] >= 0
        assert int(asked_places.nonzero()[0]) == len(ids) - 1
        answer = catalogue.answer(item, form)
        assert processor.tokenizer.decode(batch.labels[number][asked_places][:-1]) == answer
        assert batch.labels[number][asked_places][-1] == processor.tokenizer.eos_token_id
        if form.has_image:
            seen = catalogue.pixels([item])[0].transpose(2, 0, 1) / 127.5 - 1
            assert np.abs(seen - expected["pixel_values"][0, 0]).max() < 1e-2


def test_pictures_are_kept_for_the_code_that_makes_them(rows, processor, tmp_path, monkeypatch):
    before, _ = draw_on(rows, processor, tmp_path)
    monkeypatch.setattr(catalogues, "load_image", lambda *_: Image.new("RGB", (48, 48)))
    again, _ = draw_on(rows, processor, tmp_path)
    assert (again == before).all()

    def changed(modules: Iterable[str]) -> str:
        return "".join({"data/images", "models/architecture", "summarize/catalogue"} & {*modules})

    monkeypatch.setattr(catalogues, "code_fingerprint", changed)
    drawn, _ = draw_on(rows, processor, tmp_path)
    assert not drawn.any()


def test_every_item_comes_once_an_epoch_in_batches_of_equal_length():
    items = [Item(str(i), "x" * (i * 7 % 50), (), (), None) for i in range(96)]
    epoch = [step_items(items, 4, step, [1]) for step in range(24)]
    assert sorted(item.item_id for batch in epoch for item in batch) == sorted(item.item_id for item in items)
    spread = [np.ptp([len(item.text) for item in batch]) for batch in epoch]
    assert np.mean(spread) < 8  # of 49
    again = [step_items(items, 4, step, [1]) for step in range(24)]
    assert epoch == again != [step_items(items, 4, step, [1]) for step in range(24, 48)]


def test_distorted_pictures_stay_pictures():
    picture = np.full((5, 16, 16, 3), 128, np.uint8)
    pixels = distort(np.random.default_rng(0), picture)
    assert pixels.shape == (5, 3, 16, 16)
    assert pixels.abs().max() <= 1
    assert len(set(pixels[:, 0, 0, 0].tolist())) == 5


# Training.


def test_training_lowers_the_loss_of_items_it_was_not_trained_on(new_aligner, tmp_path):
    aligner = new_aligner(replace(SETTINGS, speaking_steps=80, text_rate=1e-2, validate_every=40))
    before = aligner.validate(speaking=True)
    align(aligner, tmp_path / "checkpoint.pt")
    assert aligner.validate(speaking=True) < 0.5 * before


def test_a_catalogue_without_texts_is_validated_by_its_pictures(tokenizer, processor, tmp_path):
    settings = replace(SETTINGS, text_rate=1e-2, validate_every=4)
    rows = read_rows(published(tmp_path / "films", title=None, text=None), 100, seed=0)
    wordless = Catalogue(rows, *draw_on(rows, processor, tmp_path), processor, settings.fields)
    aligner = Aligner(start_model(wordless, new_text_model(tokenizer), tokenizer, settings), wordless, settings)
    first = aligner.validate(speaking=True)
    align(aligner, tmp_path / "checkpoint.pt")
    assert 0 < aligner.validate(speaking=True) < 0.8 * first


def test_the_text_model_rests_while_the_tower_learns_alone(new_aligner):
    aligner = new_aligner()
    words = aligner.model.lm_head.weight.clone()
    tower = aligner.model.model.vision_model.embeddings.patch_embedding.weight.clone()
    for _ in range(SETTINGS.vision_steps):
        aligner.take_step()
    assert torch.equal(words, aligner.model.lm_head.weight)
    assert not torch.equal(tower, aligner.model.model.vision_model.embeddings.patch_embedding.weight)
    aligner.take_step()
    assert not torch.equal(words, aligner.model.lm_head.weight)


@pytest.mark.parametrize("stop", [2, 4, 11])
def test_a_resumed_run_is_the_run_that_was_never_stopped(new_aligner, tmp_path, stop):
    unbroken, broken, resumed = new_aligner(), new_aligner(), new_aligner()
    align(unbroken, tmp_path / "one.pt", until=14)
    align(broken, tmp_path / "two.pt", until=stop)
    align(resumed, tmp_path / "two.pt", until=14)
    assert resumed.step == 14
    for name, value in unbroken.whole.state_dict().items():
        assert torch.equal(value, resumed.whole.state_dict()[name]), name


def test_a_checkpoint_of_other_settings_is_refused(new_aligner, tmp_path):
    align(new_aligner(), tmp_path / "checkpoint.pt", until=1)
    with pytest.raises(ValueError, match="own settings"):
        align(new_aligner(replace(SETTINGS, seed=1)), tmp_path / "checkpoint.pt")


def test_the_whole_build_leaves_a_model_that_loads_and_its_figures(dataset, tokenizer, tmp_path):
    out = tmp_path / "model"
    figures = align_on(out, dataset, new_text_model(tokenizer), tokenizer, SMOKE, tmp_path / "cache")
    assert list(figures) == ["picture alone", "picture and text", "text alone"]
    assert figures["text alone"]["items"] == 6
    assert json.loads((out / "figures.json").read_text())["settings"]["seed"] == SMOKE.seed
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    assert loaded.lm_head.weight is loaded.model.text_model.embed_tokens.weight
    with pytest.raises(FileExistsError):
        align_on(Path(out), dataset, new_text_model(tokenizer), tokenizer, SMOKE, tmp_path / "cache")


def test_a_catalogue_does_not_get_the_model_of_another_one(dataset, tokenizer, tmp_path, monkeypatch):
    """They share a cache, and the first build was killed just before it would have been published."""
    monkeypatch.setattr("mmsrarec_ray.summarize.compact.load_text_model", lambda file: new_text_model(tokenizer))
    monkeypatch.setattr("mmsrarec_ray.summarize.compact.load_tokenizer", lambda file, context: tokenizer)
    (tmp_path / "model.gguf").touch()
    other = published(tmp_path / "others", text="A wizard sleeps in the quiet garden of a neighbour.")

    def built(name, films, cache):
        build = {"model": "compact", "smoke": True, "gguf": str(tmp_path), "cache": str(tmp_path / cache)}
        config = Config.model_validate({"run": str(tmp_path), "data": {"format": "shop"}, "build": build})
        out = Folder.at(str(tmp_path / cache / "model" / name))
        made = SimpleNamespace(folder=films, manifest=SimpleNamespace(counts={"items_out": 40}))
        BuildModel(config).run(out, {"dataset": made})
        return out.read_bytes("model.safetensors")

    first, second = built("first", dataset, "shared"), built("second", other, "shared")
    assert second == built("second", other, "own")
    assert first != second


def test_with_a_teacher_the_figures_say_what_the_tower_knew_before_it_spoke(dataset, tokenizer, tmp_path):
    cache, settings = tmp_path / "cache", alignment(taught=True, smoke=True)
    figures = align_on(tmp_path / "model", dataset, new_text_model(tokenizer), tokenizer, settings, cache)
    told = json.loads((tmp_path / "model" / "figures.json").read_text())["picture by itself"]
    assert told == figures["picture by itself"]
    assert list(told["explained"]) == ["place", "whole"]
    assert {"commonest labels", "tower before", "tower", "teacher"} < set(told["probe"])
    assert told["probe"]["items"] == 7  # of eight test films one has no poster
    assert told["probe"]["teacher"]["value"] == 1  # posters of two colours


def test_a_teacher_needs_test_items_with_labels_that_training_items_have(tokenizer, tmp_path):
    rows = [row(index, tmp_path) for index in range(40)]
    for each in rows:
        if each["split"] == "test":
            each["attributes"] = {"genres": "Comedy"}
    (tmp_path / "items").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=ITEMS), tmp_path / "items" / "part-0.parquet")
    (tmp_path / MANIFEST).write_text("{}")
    films, settings = Folder.at(str(tmp_path)), alignment(taught=True, smoke=True)
    with pytest.raises(InputError, match="no test items with a picture and a label"):
        align_on(tmp_path / "model", films, new_text_model(tokenizer), tokenizer, settings, tmp_path / "cache")
    assert not (tmp_path / "model").exists()


# Figures.


def answer(said, item):
    return Answer(item, "", said)


def test_overlap_counts_words_and_totals_are_micro_averages():
    first, second = overlap(("a", "b"), ("a",)), overlap((), ("c", "d"))
    assert (first.precision, first.recall, first.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert second.f1 == second.precision == 0
    assert total([first, second]).recall == pytest.approx(1 / 3)


def test_text_figures_count_what_the_text_says():
    items = [
        Item("1", "A robber hides.", (), ("robber", "hides"), None),
        Item("2", "A dragon sleeps.", (), ("dragon",), None),
    ]
    answers = [answer(Keywords((), ("robbers", "castle")), items[0]), answer(None, items[1])]
    figures = text_figures(answers)
    assert figures == {
        "grounded": 0.5,
        "elsewhere": 0.0,
        "recall": pytest.approx(1 / 3),
        "distinct": 1.0,
        "per_item": 1.0,
        "parsed": 0.5,
    }


def test_a_model_that_sees_gains_over_shuffled_pictures_and_one_that_guesses_does_not():
    items = [Item(str(i), "", (("a", "b", "c", "d")[i % 4],), (), 0) for i in range(80)]
    sees = image_figures([answer(Keywords(item.image_keywords, ()), item) for item in items], items, seed=0)
    assert sees["own"]["f1"] == 1
    assert sees["shuffled"]["f1"] == pytest.approx(19 / 79, abs=0.03)
    assert sees["gain"]["low"] > 0.6
    guesses = image_figures([answer(Keywords(("a", "b"), ()), item) for item in items], items, seed=0)
    assert guesses["own"] == guesses["shuffled"]
    assert guesses["gain"]["low"] <= 0 <= guesses["gain"]["high"]


def test_the_constant_guess_is_the_best_prefix_of_the_most_frequent_labels():
    items = [Item("1", "", ("a",), (), 0), Item("2", "", ("a", "b"), (), 0), Item("3", "", ("a", "b", "c"), (), 0)]
    assert constant_guess(items) == ("a", "b")
