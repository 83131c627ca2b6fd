"""What every test may ask for: one small Ray for the session, and an object store of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    # For the S3 server of the tests: Ray's workers inherit what stands here when Ray starts.
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# They start engines and clusters: begun first, they do not leave one of two test workers idle at the end.
_LONGEST = (
    *("test_ray_job.py", "rank/test_pipeline.py", "rank/test_score.py"),
    *("summarize/test_stage.py", "summarize/test_kills.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST))


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """No hub, no token, and credentials that open nothing but the tests' own S3."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def ray_session(environment: None) -> Iterator[str]:
    """A Ray of four logical CPUs; the address for jobs that shall join it."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=400 * 2**20,
        logging_level="WARNING",
        log_to_driver=False,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def s3(environment: None) -> Iterator[tuple[str, str]]:
    """An S3 server in this process: a bucket's URI, and what to append to URIs so that they reach the server."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"?endpoint_override={host}%3A{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = fs.FileSystem.from_uri(f"s3://bucket{options}")
    filesystem.create_dir(path)
    yield "s3://bucket", options
    server.stop()
