"""cluster.yaml passes what `ray up` asks of it, without a cloud, and keeps its promises."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """As written."""
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` completes it before it asks the cloud for anything."""
    return prepare_config(copy.deepcopy(cluster))


def test_ray_accepts_it(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_ray_refuses_what_is_wrong(prepared: dict[str, Any]) -> None:
    """The check above can fail: an unknown field, and a head that is none of the node types."""
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        validate_config(prepared | {"max_wrokers": 3})
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepared | {"head_node_type": "haed"})


def test_workers_may_be_lost_and_the_head_may_not(cluster: dict[str, Any]) -> None:
    """Spot nodes are asked for first, GPUs are there on demand too, and nothing costs money while nothing runs."""
    types = cluster["available_node_types"]
    spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"cpu", "gpu_spot"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_spot"]["priority"] > types["gpu"].get("priority", 0)
    assert all(types[name]["min_workers"] == 0 for name in types if name != "head")


def test_the_cloud_is_not_asked_for_what_the_image_has(prepared: dict[str, Any]) -> None:
    """Nodes start Ray from the image: what the launcher would install by default is left out."""
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


def test_the_image_is_of_this_version(cluster: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    images = [cluster["docker"]["image"]]
    images += [node["docker"]["worker_image"] for node in cluster["available_node_types"].values() if "docker" in node]
    assert {image.rpartition(":")[2] for image in images} == {f"{version[1]}-cpu", f"{version[1]}-gpu"}
