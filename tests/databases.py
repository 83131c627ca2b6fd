"""PostgreSQL and Redis servers for tests, each in a folder of its own on a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from psycopg import sql

from tests.programs import environment, free_port, program

PASSWORD = "s3cret/of the tests@"
_QUOTED = "s3cret%2Fof%20the%20tests%40"
_PATIENCE_SECONDS = 60.0
_NOBODY = "nobody"


class Server(ABC):
    """A server that a test may kill, stop and start again."""

    def __init__(self, command: list[str | Path], folder: Path, port: int, user: str | None):
        """user: who runs it; None: whoever runs the tests."""
        self.folder, self.port, self._command, self._user = folder, port, command, user
        self._process: psutil.Popen | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """With the password, without a database."""

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "log").open("a") as log:
            self._process = psutil.Popen(
                self._command,
                cwd=self.folder,
                env=environment(Path(self._command[0])),
                stdout=log,
                stderr=log,
                **_identity(self._user),
            )
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9 of all its processes."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it ended with another one
                process.kill()
        psutil.wait_procs(processes, 20)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It neither answers nor goes away meanwhile."""
        processes = self._processes()
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        return [self._process, *self._process.children(recursive=True)]

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it takes connections."""


class PostgresServer(Server):
    @property
    def url(self) -> str:
        return f"postgresql://tester:{_QUOTED}@127.0.0.1:{self.port}"

    def database(self, name: str) -> str:
        """The address of a new, empty database."""
        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"{self.url}/{name}"

    def _answers(self) -> bool:
        try:
            psycopg.connect(f"{self.url}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


class RedisServer(Server):
    @property
    def url(self) -> str:
        return f"redis://:{_QUOTED}@127.0.0.1:{self.port}"

    def database(self, number: int) -> str:
        """The address of a database, emptied."""
        with redis.Redis.from_url(f"{self.url}/{number}") as client:
            client.flushdb()
        return f"{self.url}/{number}"

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False


@contextmanager
def postgres_server(*settings: str) -> Iterator[PostgresServer]:
    """settings: `name=value` of its configuration. It does not run as root: where the tests do, nobody runs it."""
    server = program("postgres", "postgresql")
    user = _NOBODY if os.getuid() == 0 else None
    if user and subprocess.run([server, "--version"], capture_output=True, **_identity(user)).returncode:
        pytest.skip(f"no PostgreSQL: root may not run it, and {_NOBODY} cannot reach {server}")
    with _folder(user) as folder:
        (folder / "password").write_text(PASSWORD)
        making = ["--pgdata", folder / "data", "--username=tester", "--auth=scram-sha-256", "--encoding=UTF8"]
        made = subprocess.run(
            [server.with_name("initdb"), *making, "--pwfile", folder / "password", "--no-locale", "--no-sync"],
            cwd=folder,
            env=environment(server),
            capture_output=True,
            text=True,
            **_identity(user),
        )
        assert made.returncode == 0, made.stderr
        port = free_port()
        options = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", *settings]
        command = [server, "-D", folder / "data", *(word for option in options for word in ("-c", option))]
        with _running(PostgresServer(command, folder, port, user)) as running:
            yield running


@contextmanager
def redis_server(**settings: str) -> Iterator[RedisServer]:
    """settings: of its configuration, over those that keep what was accepted."""
    server, port = program("redis-server", "redis-server"), free_port()
    kept = {"appendonly": "yes", "appendfsync": "always", "save": "", "requirepass": PASSWORD} | settings
    with _folder(None) as folder:
        lines = [f'{name.replace("_", "-")} "{value}"\n' for name, value in kept.items()]
        (folder / "redis.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n{''.join(lines)}")
        with _running(RedisServer([server, folder / "redis.conf"], folder, port, None)) as running:
            yield running


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def _folder(user: str | None) -> Iterator[Path]:
    """An empty one that this user owns and can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="mmsrarec-"))
    if user:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _identity(user: str | None) -> dict:
    """Arguments of a process that this user runs."""
    return {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
