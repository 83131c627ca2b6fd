"""What every test may ask for: one small Ray for the session, and an object store of its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from mmsrarec_ray.config import Config
from mmsrarec_ray.job import execute
from mmsrarec_ray.pipeline import Pipeline
from mmsrarec_ray.store import Run
from tests.chain import chain_in

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    # For the S3 server of the tests: Ray's workers inherit what stands here when Ray starts.
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# They start engines and clusters: begun first, they do not leave one of two test workers idle at the end. The first
# makes the chain, which the service, some files later, finds.
_LONGEST = (
    *("rank/test_pipeline.py", "test_ray_job.py", "summarize/test_stage.py", "summarize/tuning/test_stage.py"),
    *("serve/test_http.py", "rank/test_score.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((n for n, name in enumerate(_LONGEST) if item.path.as_posix().endswith(name)), len(_LONGEST))


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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in a fixed order: what is equal must be equal to the bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
def pipeline(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a run folder with all artefacts (tests/chain.py). Test workers share it: what a test puts
    there, others see. MMSRAREC_TEST_CHAIN: a folder in which it stays for the next session."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = Path(os.environ.get("MMSRAREC_TEST_CHAIN", shared / "chain"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # whoever comes second finds everything up to date
        config = chain_in(folder)
        execute(Pipeline(config), Run.at(config.run))
    return config


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


@dataclass
class Page:
    """How the web server of the tests answers: pieces of the body, and seconds it waits first and before each."""

    body: bytes | list[bytes] = b""
    status: int = 200
    content_type: str = "image/png"
    headers: dict[str, str] = field(default_factory=dict)
    wait: float = 0.0
    length: int | None = None
    """What it says of the body's length; None: the truth, or nothing for several pieces."""


@dataclass
class Web:
    """A web server of this machine: path -> answers, one a request, the last of them for ever."""

    root: str
    pages: dict[str, list[Page]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, path: str, *answers: Page) -> str:
        """The address of a page."""
        self.pages[path] = list(answers)
        return f"{self.root}{path}"


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server; fetching from it has to be allowed, with the network 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            answers = here.pages.get(self.path) or [Page(status=404)]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            time.sleep(answer.wait)
            self.send_response(answer.status)
            pieces = answer.body if isinstance(answer.body, list) else [answer.body]
            length = answer.length if isinstance(answer.body, list) else answer.length or len(answer.body)
            headers = {"Content-Type": answer.content_type} | answer.headers
            for name, value in (headers | ({} if length is None else {"Content-Length": str(length)})).items():
                self.send_header(name, value)
            self.end_headers()
            for piece in pieces:
                time.sleep(answer.wait)
                self.wfile.write(piece)

        def log_message(self, *said: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, *said: object) -> None:
            """Nothing: clients hang up in the middle of an answer."""

    server = Server(("127.0.0.1", 0), Handler)
    here = Web(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield here
    server.shutdown()
    server.server_close()
