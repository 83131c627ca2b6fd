"""Questions: what they hold, and which are refused before anything is trained or scored."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.errors import ConfigError, InputError
from mmsrarec_ray.evaluate.recipes import recipe_of
from mmsrarec_ray.rank.ask import Asker
from mmsrarec_ray.rank.catalogue import Catalogue, line


def config(*words: str) -> Config:
    return load(None, ["data.format=shop", "run=/nowhere", *words])


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    shop = shop_of(5, 1200)
    rows = [{"image_uri": None, **item_row(shop, index)} for index in range(4)]
    rows[2]["image"] = rows[2]["image"][:200]
    table = pa.Table.from_pylist(rows)
    words = pa.array(["red, mug", "blue, hat", "", "green, bag"])
    return Catalogue(table["item_id"].combine_chunks(), words, table.select(["title", "text", "image", "image_uri"]))


def test_the_candidate_comes_last_and_items_without_keywords_are_left_out(catalogue: Catalogue) -> None:
    asker = Asker(config("rank.candidate=keywords"), catalogue)
    user = asker.user([0, 2], [1])
    assert user == (
        "User history, oldest first:\n- red, mug\nUsers with a similar history chose these items next:\n- blue, hat\n"
        "Will the user choose it? Answer yes or no:\nCandidate item:\n"
    )
    first, second = (asker.question(user, number).prompt for number in (0, 3))
    shared = first[: first.index(user) + len(user)]
    assert second.startswith(shared)
    assert "- green, bag" in second[len(shared) :]
    assert asker.user([], []).startswith("The history of the user is empty.\n")


def test_a_picture_that_cannot_be_used_is_left_out(catalogue: Catalogue) -> None:
    asker = Asker(config("rank.candidate=image"), catalogue)
    assert asker.question("", 1).image is not None
    broken = asker.question("", 2)
    assert broken.image is None
    assert "<image>" not in broken.prompt


def test_a_question_that_does_not_fit_is_refused_its_picture_counted(catalogue: Catalogue) -> None:
    roomy = Asker(config("rank.candidate=image"), catalogue)
    question = roomy.question(roomy.user([0], [1]), 3)
    length = len(roomy.tokens(question)) + roomy.picture_tokens
    pixels = roomy.processor(text=[question.prompt], images=[[question.image]], add_special_tokens=False)
    assert length == len(pixels["input_ids"][0])
    Asker(config("rank.candidate=image", f"model.max_model_len={length + 1}"), catalogue).tokens(question)
    with pytest.raises(InputError, match=rf"a question has {length} tokens: model\.max_model_len, {length}, must be"):
        Asker(config("rank.candidate=image", f"model.max_model_len={length}"), catalogue).tokens(question)


def test_an_item_s_keywords_stand_once_in_its_line() -> None:
    assert line(["red", "mug"], ["mug", "acme"]) == "red, mug, acme"
    assert line(None, []) == ""


def test_an_adapter_on_an_object_store_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^run: the engine of mmsrarec .* Got 's3://bucket/run'\.$"):
        recipe_of("mmsrarec", load(None, ["data.format=shop", "run=s3://bucket/run"])).check()
