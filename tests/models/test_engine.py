"""What a stage asks of the cluster before it starts engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmsrarec_ray.errors import ConfigError
from mmsrarec_ray.models.engine import require_cpus


@pytest.fixture
def autoscaler(ray_session: str) -> Iterator[None]:
    """The cluster says of itself what one with an autoscaler says."""
    from ray._raylet import GCS_AUTOSCALER_STATE_NAMESPACE, GCS_AUTOSCALER_V2_ENABLED_KEY
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    client = internal_kv_get_gcs_client()
    key, space = GCS_AUTOSCALER_V2_ENABLED_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    before = client.internal_kv_get(key, namespace=space)
    client.internal_kv_put(key, b"1", True, namespace=space)
    yield
    client.internal_kv_put(key, before or b"0", True, namespace=space)
    assert not is_autoscaler_v2(fetch_from_server=True)  # which Ray remembers, for the tests that follow


def test_too_few_cpus_are_told(ray_session: str) -> None:
    with pytest.raises(ConfigError, match=r"hold 1000 logical CPUs and the cluster has 4"):
        require_cpus("summarize", 1000)


def test_a_cluster_that_grows_may_begin_small(autoscaler: None) -> None:
    require_cpus("summarize", 1000)
