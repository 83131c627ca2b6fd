"""The teacher: its examples are the processor's, its steps lower the losses, and stopping changes nothing."""

import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from mmsrarec_ray.data.shop.draw import item_picture
from mmsrarec_ray.data.shop.law import draw_shop
from mmsrarec_ray.models.pretrain_vision import CELL, augment
from mmsrarec_ray.summarize import build_tiny as building
from mmsrarec_ray.summarize.build_tiny import build_tiny, prepare, train
from mmsrarec_ray.summarize.evaluate_tiny import Share, grade, prompts
from mmsrarec_ray.summarize.lessons import BOTH, FORMS, IMAGE_ONLY, TEXT_ONLY, Lessons, draw_pictures, shop_answer
from mmsrarec_ray.summarize.teach import SMOKE, Recipe, Teacher, step_items, teach

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = replace(SMOKE, items=128, steps=24, checkpoint_every=6, report_every=6, learning_rate=3e-3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    prepare(folder, RECIPE)
    return folder


@pytest.fixture(scope="module")
def processor(cache):
    return AutoProcessor.from_pretrained(cache / "start")


@pytest.fixture(scope="module")
def lessons(processor):
    return Lessons(draw_shop(RECIPE.seed, RECIPE.items), processor)


@pytest.fixture
def new_teacher(cache, lessons):
    pictures = draw_pictures(RECIPE.seed, RECIPE.items, cache, 1)

    def start(recipe=RECIPE):
        model = Idefics3ForConditionalGeneration.from_pretrained(cache / "start", dtype=torch.float32)
        return Teacher(model, lessons, pictures, recipe)

    return start


def weights(teacher):
    return {**teacher.model.state_dict(), **{f"heads.{k}": v for k, v in teacher.heads.state_dict().items()}}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_token_for_token_what_the_processor_makes(lessons, processor, form):
    indices = list(range(12))
    batch = lessons.batch(indices, form)
    for row, prompt in enumerate(prompts(lessons.shop, processor, indices, form)):
        image = [[item_picture(lessons.shop, row)[0]]] if form.has_image else None
        expected = processor(text=[prompt], images=image)["input_ids"][0]
        assert batch.ids[row, : len(expected)].tolist() == expected
        asked = batch.labels[row] >= 0
        first = int(asked.nonzero()[0])
        assert first == len(expected) - 1
        answer = processor.tokenizer.decode(batch.labels[row][asked])
        assert answer == shop_answer(lessons.shop, row, form) + "<|im_end|>"


def test_a_picture_beside_another_items_text_keeps_its_own_keywords(lessons, processor):
    shown, told = [0, 1], [2, 3]
    batch = lessons.batch(shown, BOTH, told)
    for row in range(2):
        asked = batch.labels[row] >= 0
        answer = processor.tokenizer.decode(batch.labels[row][asked]).removesuffix("<|im_end|>")
        assert answer.startswith(shop_answer(lessons.shop, shown[row], IMAGE_ONLY))
        assert answer.endswith(shop_answer(lessons.shop, told[row], TEXT_ONLY))
        assert lessons.prompt(told[row], BOTH) == processor.tokenizer.decode(
            batch.ids[row][: int(asked.nonzero()[0]) + 1]
        )


def test_an_answer_names_what_the_form_holds(lessons):
    index = int(np.flatnonzero(~lessons.shop.hidden_kind)[0])
    both, image, text = (shop_answer(lessons.shop, index, form) for form in (BOTH, IMAGE_ONLY, TEXT_ONLY))
    assert both == f"{image}; {text}"
    assert image.startswith("image: ")
    assert text.startswith("text: ")


def test_drawings_in_the_cache_are_the_shops(cache, lessons):
    drawn = draw_pictures(RECIPE.seed, RECIPE.items, cache, 1)
    image, silhouette = item_picture(lessons.shop, 77)
    assert (drawn.pixels[77] == np.asarray(image)).all()
    assert drawn.silhouettes[77].mean() / 255 == pytest.approx(silhouette.mean(), abs=0.01)


def test_pictures_and_silhouettes_are_augmented_together():
    """A bright square and its silhouette stay on each other however they are mirrored and shifted."""
    pictures = np.zeros((16, 96, 96, 3), np.uint8)
    pictures[:, 40:48, 8:16] = 255
    silhouettes = np.zeros((16, 24, 24), np.uint8)
    silhouettes[:, 10:12, 2:4] = 255
    seen = set()
    for seed in range(80):
        pixels, masks = augment(np.random.default_rng(seed), pictures, silhouettes)
        bright = (pixels[:, 0] > 0).float().unfold(1, CELL, CELL).unfold(2, CELL, CELL).mean((-1, -2))
        assert torch.equal(bright, masks)
        seen |= {tuple(mask.nonzero()[0].tolist()) for mask in masks}
    assert len(seen) == 18, "two sides, three shifts down and three across"


def test_every_item_is_looked_at_once_before_any_comes_again():
    recipe = replace(Recipe(), items=640, processes=2, pictures=32)
    for epoch in range(2):
        steps = range(10 * epoch, 10 * (epoch + 1))
        seen = [item for step in steps for rank in (0, 1) for item in step_items(recipe, step, rank)]
        assert sorted(seen) == list(range(640))
    assert (step_items(recipe, 0, 0) != step_items(recipe, 10, 0)).any()


def test_the_learning_rate_warms_up_in_both_parts_and_falls():
    recipe = Recipe()
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    speaks = recipe.vision_steps
    assert rates[0] < rates[50] < rates[recipe.warmup_steps]
    assert rates[speaks] < 0.05 * rates[speaks - 1]
    assert max(rates) <= recipe.learning_rate
    assert rates[-1] < 0.03 * recipe.learning_rate


def test_teaching_lowers_every_loss(new_teacher):
    recipe = replace(RECIPE, steps=80, vision_share=0.4)
    history = list(new_teacher(recipe).run(recipe.steps))
    assert [step for step, _ in history] == list(range(1, 81))
    assert all(("answer" in losses) == (step > recipe.tally_steps) for step, losses in history)
    silhouette = [losses["silhouette"] for _, losses in history]
    answer = [losses["answer"] for _, losses in history if "answer" in losses]
    labels = [losses["labels"] for _, losses in history[: recipe.vision_steps]]
    assert np.mean(silhouette[-5:]) < 0.75 * np.mean(silhouette[:5])
    assert np.mean(labels[-5:]) < np.mean(labels[:5])
    assert np.mean(answer[-5:]) < 0.7 * np.mean(answer[:3])
    tally = [losses["tally"] for _, losses in history if "tally" in losses]
    reading = [losses["reading"] for _, losses in history if "reading" in losses]
    assert (len(tally), len(reading)) == (recipe.tally_steps, recipe.steps - recipe.tally_steps)
    assert np.mean(tally[-3:]) < np.mean(tally[:3])
    assert np.mean(reading[-5:]) < 0.7 * np.mean(reading[:5])


def test_picture_and_words_do_not_meet_while_the_vision_tower_learns_alone(new_teacher):
    teacher = new_teacher()
    before = {name: value.clone() for name, value in weights(teacher).items()}
    list(teacher.run(RECIPE.vision_steps))
    after = weights(teacher)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("vision_model" in name for name in moved)
    assert any("text_model" in name for name in moved)
    assert not any("connector" in name for name in moved)


# In the middle of either part, at the seam between them, and at the very end.
@pytest.mark.parametrize("stop", [5, RECIPE.vision_steps, 17])
def test_a_resumed_run_is_the_unbroken_run(new_teacher, tmp_path, stop):
    unbroken = new_teacher()
    teach(unbroken, tmp_path / "unbroken.pt")
    teach(new_teacher(), tmp_path / "broken.pt", until=stop)
    resumed = new_teacher()
    teach(resumed, tmp_path / "broken.pt")
    assert resumed.step == RECIPE.steps
    assert same(weights(unbroken), weights(resumed))


def test_a_killed_run_goes_on_from_its_last_checkpoint(new_teacher, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    killed = new_teacher()
    list(killed.run(6))
    killed.save(path)
    list(killed.run(9))  # never saved
    resumed = new_teacher()
    teach(resumed, path)
    assert "step 12/24" in capsys.readouterr().out
    assert torch.load(path, weights_only=True)["step"] == RECIPE.steps
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_recipe_is_refused(new_teacher, tmp_path):
    teacher = new_teacher()
    teacher.save(tmp_path / "checkpoint.pt")
    other = new_teacher(replace(RECIPE, learning_rate=1e-4))
    with pytest.raises(ValueError, match="own settings"):
        other.resume(tmp_path / "checkpoint.pt")


def test_two_processes_hold_the_same_model_and_share_their_gradients(cache, tmp_path, new_teacher):
    """Two processes of 8 pictures take the step of one process that sees both halves."""
    parts = {"both": 4, "image_only": 2, "text_only": 1, "shown": 1, "tally_steps": 1}
    recipe = replace(RECIPE, processes=2, pictures=8, steps=2, vision_share=1.0, **parts)
    for name in cache.iterdir():
        os.symlink(name, tmp_path / name.name)
    train(tmp_path, recipe)
    together = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert together["step"] == 2

    halves = [new_teacher(recipe), new_teacher(recipe)]
    for rank, half in enumerate(halves):
        half.rank = rank
    for step in range(2):
        for half in halves:
            half.optimizer.zero_grad()
            torch.stack(list(half.losses(step).values())).sum().backward()
        for pair in zip(*(half.parameters for half in halves), strict=True):
            grads = [parameter.grad for parameter in pair]
            if grads[0] is not None:
                mean = (grads[0] + grads[1]) / 2
                for parameter in pair:
                    parameter.grad = mean.clone()
        for half in halves:
            for group in half.optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            torch.nn.utils.clip_grad_norm_(half.parameters, 1.0)
            half.optimizer.step()
    expected = halves[0].model.state_dict()
    for name, value in together["model"].items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


def test_grading_reads_keywords_by_their_place():
    shop = draw_shop(3, 40)
    shown, hidden = int(np.flatnonzero(~shop.hidden_kind)[0]), int(np.flatnonzero(shop.hidden_kind)[0])
    perfect = [shop_answer(shop, index, BOTH) for index in range(40)]
    assert all(share.right == share.of for share in grade(shop, perfect, BOTH).values())
    assert grade(shop, perfect, BOTH)["kind, hidden"].of == int(shop.hidden_kind.sum())

    for index, broken in ((shown, "image: red; text: acme"), (hidden, "not a summary")):
        said = [*perfect]
        said[index] = broken
        figures = grade(shop, said, BOTH)
        assert {name: figures[name].right for name in ("colour", "kind", "material", "exact")} == dict.fromkeys(
            ("colour", "kind", "material", "exact"), 39
        )
    said = [*perfect]
    colour, pattern, rest = perfect[shown].removeprefix("image: ").split(", ", 2)
    said[shown] = f"image: {pattern}, {colour}, {rest}"
    figures = grade(shop, said, BOTH)
    assert (figures["colour"].right, figures["pattern"].right, figures["kind"].right) == (39, 39, 40)


def test_the_interval_is_wilsons():
    """Wilson's interval for 9 of 10, worked out by hand: centre 0.789, reach 0.193."""
    low, high = Share(9, 10).bounds
    assert (low, high) == (pytest.approx(0.596, abs=1e-3), pytest.approx(0.982, abs=1e-3))
    assert Share(10, 10).bounds[1] == 1


def test_a_smoke_build_writes_a_model_folder_with_card_and_figures(tmp_path, monkeypatch):
    recipe = replace(RECIPE, steps=4, tally_steps=1, exam_items=6)
    out = tmp_path / "model"
    figures = build_tiny(out, tmp_path / "cache", recipe)
    assert {path.name for path in out.iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md", "figures.json")
    }
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "float32"
    written = json.loads((out / "figures.json").read_text())
    assert written["recipe"]["steps"] == 4
    for asked, name in itertools.product(("picture alone", "picture and text"), ("colour", "kind")):
        share = figures.summaries[asked][name]
        assert written["figures"][asked][name] == {"right": share.right, "of": share.of}
        assert share.of == 6
    loaded = Idefics3ForConditionalGeneration.from_pretrained(out)
    assert loaded.dtype == torch.float32

    monkeypatch.setattr(building, "prepare", lambda *_: pytest.fail("must be refused before any work"))
    with pytest.raises(FileExistsError, match="model"):
        build_tiny(out, tmp_path / "cache", recipe)
