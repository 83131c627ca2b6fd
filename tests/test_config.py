"""The settings: what is wrong is refused with the dotted key, what was expected and what came."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsrarec_ray.config import Config, known_keys, load, overrides_of
from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.settings import Settings

ROOT = Path(__file__).parents[1]
GOOD = ("run=/tmp/run", "data.format=shop")


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, words)
    return str(caught.value)


def test_overrides_win_over_the_file_and_values_are_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {format: movies, path: /somewhere}\nsummarize: {max_keywords: 3}\n")
    config = load(file, ["run=s3://bucket/x", "summarize.max_keywords=4", "engine.env={A: b}", "data.min_weight=null"])
    assert config.summarize.max_keywords == 4
    assert config.data.path == "/somewhere"
    assert config.engine.env == {"A": "b"}
    assert config.data.min_weight is None


def test_an_unknown_key_suggests_the_nearest() -> None:
    message = refusal(*GOOD, "summarize.max_keyword=3")
    assert message == "summarize.max_keyword: there is no such setting. Did you mean summarize.max_keywords?"


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("data.format=film", ("data.format", "'shop', 'tables'", "'film'")),
        ("engine.cpus=-1", ("engine.cpus", "greater than 0", "-1")),
        ("split.test=1.5", ("split.test", "less than 1", "1.5")),
        ("summarize.max_keywords=many", ("summarize.max_keywords", "integer", "'many'")),
        ("shop.users=1500", ("shop.users", "multiple of 1000", "1500")),
        ("engine.gpus=2", ("engine.gpus", "tensor_parallel_size", "2")),
        ("split.validation=0.95", ("split.validation", "split.test", "train")),
        ("data.fetch.networks=[10.2.0.1/16]", ("data.fetch.networks", "host bits", "10.2.0.1/16")),
        ("nonsense", ("key=value", "'nonsense'")),
        ("run.deeper=1", ("run.deeper", "'run' is a value")),
        ("model.source=[", ("model.source", "YAML")),
    ],
)
def test_a_wrong_value_is_named(word: str, parts: tuple[str, ...]) -> None:
    message = refusal(*GOOD, word)
    assert all(part in message for part in parts), message


def test_a_fingerprint_of_digits_alone_is_no_number() -> None:
    assert (
        load(None, [*GOOD, "serve.trial.pipeline=12345678901234567890"]).serve.trial.pipeline == "12345678901234567890"
    )


def test_a_relative_run_folder_is_refused_with_the_reason() -> None:
    message = refusal("run=out", "data.format=shop")
    assert "absolute path or a URI" in message
    assert "Ray's temporary copy" in message


def test_data_needs_a_path_unless_it_is_the_shop() -> None:
    assert "data.path: must be set" in refusal("run=/r", "data.format=movies")


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal("data.format=film", "engine.cpus=0")
    assert [line.split(":")[0] for line in message.splitlines()] == ["run", "data.format", "engine.cpus"]


def test_a_file_that_is_not_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    for file in (broken, tmp_path / "absent.yaml"):
        with pytest.raises(ConfigError, match=str(file)):
            load(file)


def test_the_resolved_configuration_is_the_same_when_read_again() -> None:
    config = load(None, GOOD)
    assert Config.model_validate(config.model_dump(mode="json")) == config


def test_every_setting_but_plain_names_is_described() -> None:
    undescribed = {key for key, _, description in known_keys() if not description}
    assert {key for key in undescribed if not key.startswith(("data.item_columns", "data.interaction_columns"))} <= {
        "split.test",
        "shop.seed",
        "shop.items",
        "shop.users",
        "split.seed",
        "model.dtype",
        "engine.accelerator_type",
        "engine.tensor_parallel_size",
        "engine.enforce_eager",
        "summarize.max_word_chars",
        "summarize.temperature",
        "summarize.seed",
        "summarize.contact_sheet_items",
        "ray.object_store_mib",
    }


def test_a_setting_given_alone_leaves_its_neighbours_at_their_defaults() -> None:
    base = load(None, GOOD)
    given = load(None, [*GOOD, "serve.ranker.max_replicas=4", "serve.fetch.at_a_time=2", "serve.ingress.cpus=1"])
    assert given.serve.ranker == base.serve.ranker.model_copy(update={"max_replicas": 4})
    assert given.serve.fetch == base.serve.fetch.model_copy(update={"at_a_time": 2})
    assert given.serve.ingress == base.serve.ingress.model_copy(update={"cpus": 1.0})
    assert load(None, overrides_of(given)) == given


def test_every_group_is_what_its_class_says() -> None:
    def check(node: type[Settings], path: str) -> None:
        for name, field in node.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                if isinstance(field.default, Settings):
                    assert field.default == field.annotation(), f"{path}{name}"
                check(field.annotation, f"{path}{name}.")

    check(Config, "")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_the_configurations_we_ship_are_valid(file: Path) -> None:
    assert load(file, ["run=/tmp/run", "data.path=/tmp/data"]).run == "/tmp/run"


def test_the_words_that_repeat_a_configuration() -> None:
    given = ["run=/r", "data.format=tables", "data.path=/d", "evaluate.seeds=[0, 1]", "methods.bert4rec.epochs=9"]
    config = load(None, given)
    words = overrides_of(config)
    assert {'data.path="/d"', "evaluate.seeds=[0, 1]", "methods.bert4rec.epochs=9"} <= set(words)
    assert not any(word.startswith(("summarize.", "methods.sasrec.")) for word in words)
    assert load(None, words) == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods.sasrec.heads=3", r"^methods\.sasrec\.heads: must divide its dim, 64\. Got 3\.$"),
        (
            "retrieve.index=ivf_pq methods.sasrec.dim=80",
            r"^retrieve\.pq_bytes: must divide .* \(80\)",
        ),
        (
            "tune_recommender.batch_size=24",
            r"^tune_recommender\.batch_size: must be a multiple of train\.workers \(1\), .* micro_batch_size \(16\)",
        ),
        ("evaluate.seeds=[0,0]", r"^evaluate\.seeds: each may stand once\. Got \[0, 0\]\.$"),
        ("evaluate.methods=[sasrecc]", r"^evaluate\.methods\.0: input should be .* Got 'sasrecc'\.$"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, ["run=/r", "data.format=shop", *word.split()])
