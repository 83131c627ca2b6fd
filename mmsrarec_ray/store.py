"""Run folders: `<run>/<artefact>/<fingerprint>/`, published by a manifest that is written last.

Works on any filesystem pyarrow knows: a path, s3://, gs://, hdfs://. Object stores cannot rename a folder, so
an artefact is what its `manifest.json` says it is; a folder without one is unfinished and counts for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs as pafs
from pydantic import BaseModel, ConfigDict, ValidationError

from mmsrarec_ray.errors import ArtefactError, ConfigError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_CHUNK = 1 << 22
_LARGE = "dataset"
_UNFINISHED = ".part"


class FileEntry(BaseModel):
    """One file of an artefact."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artefact is and what it was made from."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    artefact: str
    fingerprint: str
    code: str
    """Hash of the source files that decide the result."""
    package: str
    engine: dict[str, Any]
    """What computed it: name, version and whatever of its settings changes results."""
    config: dict[str, Any]
    """The whole resolved configuration."""
    inputs: dict[str, str]
    """Name -> fingerprint of what was read."""
    files: dict[str, FileEntry]
    """Path below the artefact -> size and checksum."""
    counts: dict[str, int]
    metrics: dict[str, Any]
    seconds: float
    created: datetime

    @property
    def digest(self) -> str:
        """Fingerprint of the content alone: equal results are equal inputs to the next stage."""
        return fingerprint(sorted(entry.sha256 for entry in self.files.values()))


def fingerprint(value: Any) -> str:
    """A short, stable hash of a JSON value: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:20]


def code_fingerprint(modules: Iterable[str], root: Path = Path(__file__).parent) -> str:
    """Hash of the source of modules and packages, named relative to this package (`data`, `summarize/prompts`)."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        path = root / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@dataclass(frozen=True)
class Folder:
    """A folder on some filesystem. Plain data: Ray tasks may take it along."""

    filesystem: pafs.FileSystem
    path: str
    scheme: str = ""
    """`s3://` and the like; empty for this machine's files."""
    options: str = ""
    """What follows the path in the URI, such as `?region=…`."""

    @classmethod
    def at(cls, uri: str) -> Folder:
        """Open a path or URI; nothing is created. Raises ConfigError where no filesystem answers to it."""
        try:
            filesystem, path = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(f"{uri!r} is neither an absolute path nor a URI that can be opened: {error}") from None
        if isinstance(filesystem, pafs.LocalFileSystem):
            return cls(filesystem, path.rstrip("/"))
        scheme, _, rest = uri.partition("://")
        _, mark, options = rest.partition("?")
        return cls(filesystem, path.rstrip("/"), f"{scheme}://", mark + options)

    def __truediv__(self, name: str) -> Folder:
        return replace(self, path=posixpath.join(self.path, name))

    def uri(self, name: str) -> str:
        """What opens a file of this folder from anywhere: an absolute path or a URI."""
        path = quote(self.file(name)) if self.scheme else self.file(name)
        return f"{self.scheme}{path}{self.options}"

    def file(self, name: str) -> str:
        """The full path of a file in this folder, for pyarrow."""
        return posixpath.join(self.path, name)

    def exists(self, name: str) -> bool:
        return self.filesystem.get_file_info(self.file(name)).type == pafs.FileType.File

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.file(name), compression=None) as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that it appears whole or not at all, also where the machine then loses power."""
        self.filesystem.create_dir(posixpath.dirname(self.file(name)), recursive=True)
        if not isinstance(self.filesystem, pafs.LocalFileSystem):  # an object store shows a file when it is closed
            with self.filesystem.open_output_stream(self.file(name)) as stream:
                stream.write(content)
            return
        unfinished = self.file(f"{name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")  # another process may write it too
        with open(unfinished, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # else the new name may be on the disk before what it names
        os.replace(unfinished, self.file(name))

    def download(self, local: Path) -> None:
        """Copy all files below into a folder of this machine."""
        local.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(self.path, str(local), self.filesystem, pafs.LocalFileSystem())

    def upload(self, local: Path) -> None:
        """Copy all files of a folder of this machine here; unlike `write_bytes`, a file may appear half written."""
        self.filesystem.create_dir(self.path, recursive=True)
        pafs.copy_files(str(local), self.path, pafs.LocalFileSystem(), self.filesystem)

    def files(self) -> list[str]:
        """Paths of all files below, relative to this folder, sorted."""
        return sorted(self.entries())

    def entries(self, recursive: bool = True) -> dict[str, pafs.FileInfo]:
        """Path below this folder -> size and times, of all files below that are whole: one listing, however many files.

        recursive: else of those directly in this folder.
        """
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        infos = [info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        return {posixpath.relpath(i.path, self.path): i for i in infos if not i.path.endswith(_UNFINISHED)}

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(i.base_name for i in self.filesystem.get_file_info(selector) if i.type == pafs.FileType.Directory)

    def clear(self) -> None:
        """Remove everything below, the manifest first, so that what is half removed is not taken as published."""
        if self.exists(MANIFEST):
            self.filesystem.delete_file(self.file(MANIFEST))
        self.filesystem.delete_dir_contents(self.path, missing_dir_ok=True)
        self.filesystem.create_dir(self.path, recursive=True)

    def remove(self) -> None:
        """Remove the folder and everything below."""
        self.clear()
        self.filesystem.delete_dir(self.path)

    def discard(self, name: str) -> None:
        """Remove a file or a folder of this one, where there is such."""
        kind = self.filesystem.get_file_info(self.file(name)).type
        if kind == pafs.FileType.Directory:
            (self / name).remove()
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.file(name))

    def checksum(self, name: str) -> FileEntry:
        """Size in bytes and SHA-256 of a file, read in pieces of 4 MiB."""
        digest, size = hashlib.sha256(), 0
        with self.filesystem.open_input_stream(self.file(name), compression=None) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return FileEntry(bytes=size, sha256=digest.hexdigest())


@dataclass(frozen=True)
class Artefact:
    """One artefact of a run, published or not."""

    name: str
    fingerprint: str
    folder: Folder

    @property
    def published(self) -> bool:
        return self.folder.exists(MANIFEST)

    @cached_property
    def manifest(self) -> Manifest:
        """Raises ArtefactError where it is missing, damaged or of a newer schema."""
        where = self.folder.file(MANIFEST)
        if not self.published:
            raise ArtefactError(f"{where}: there is no such artefact, or it is unfinished.")
        return _parse_manifest(self.folder.read_bytes(MANIFEST), where)

    def verify(self, checksums: Callable[[Folder, list[str]], dict[str, FileEntry]] | None = None) -> None:
        """Raises ArtefactError where a file is missing or not what the manifest says: by the size of each, and by the
        checksum of each but a dataset's, which may hold all pictures of a catalogue.

        checksums: how those of files are worked out, by default here, one after the other.
        """
        there, files = self.folder.entries(), self.manifest.files
        for name, entry in files.items():
            size = there[name].size if name in there else None
            if size != entry.bytes:
                self._damaged(name, f"expected {entry.bytes} bytes, got {size}")
        if self.name == _LARGE:
            return
        work_out = checksums or (lambda folder, names: {name: folder.checksum(name) for name in names})
        for name, entry in work_out(self.folder, list(files)).items():
            if entry != files[name]:
                self._damaged(name, f"expected SHA-256 {files[name].sha256[:12]}…, got {entry.sha256[:12]}…")

    def _damaged(self, name: str, what: str) -> NoReturn:
        raise ArtefactError(
            f"{self.folder.file(name)}: {what}. It was changed or damaged after it was written: remove "
            f"{self.folder.path} and give the job again, which makes it anew."
        )

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the artefact counts."""
        self.folder.write_bytes(MANIFEST, manifest.model_dump_json(indent=2).encode())


def _parse_manifest(content: bytes, where: str) -> Manifest:
    try:
        tree = json.loads(content)
        version = tree["schema_version"]
        if version > SCHEMA_VERSION:
            raise ArtefactError(
                f"{where}: schema version {version} is newer than this package understands ({SCHEMA_VERSION}). "
                "Use the version of mmsrarec_ray that wrote it, or a later one."
            )
        return Manifest.model_validate(tree)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtefactError(
            f"{where}: the manifest is damaged: {error}. Remove its folder and give the job again, which makes it anew."
        ) from None


@dataclass(frozen=True)
class Run:
    """A run folder: the artefacts of one line of work."""

    folder: Folder

    @classmethod
    def at(cls, uri: str) -> Run:
        return cls(Folder.at(uri))

    def artefact(self, name: str, fingerprint: str) -> Artefact:
        return Artefact(name, fingerprint, self.folder / name / fingerprint)

    def published(self, name: str) -> list[Artefact]:
        """All published artefacts of that name, the newest first."""
        every = (self.artefact(name, folder) for folder in (self.folder / name).folders())
        return sorted((a for a in every if a.published), key=lambda a: a.manifest.created, reverse=True)


def source_fingerprint(folder: Folder, names: Iterable[str] | None = None) -> str:
    """Fingerprint of data that is not ours: path, size and modification time of each file, not its content."""
    infos: Mapping[str, pafs.FileInfo]
    if names is None:
        infos = folder.entries()
    else:
        infos = {name: folder.filesystem.get_file_info(folder.file(name)) for name in names}
    return fingerprint([[name, infos[name].size, infos[name].mtime_ns] for name in sorted(infos)])
