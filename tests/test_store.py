"""Run folders: published last, found again, and never mistaken; on this machine and on an object store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mmsrarec_ray.errors import ArtefactError, ConfigError
from mmsrarec_ray.store import (
    MANIFEST,
    Artefact,
    Folder,
    Manifest,
    Run,
    code_fingerprint,
    fingerprint,
    source_fingerprint,
)


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    if request.param == "local":
        return Run.at(str(tmp_path / "run"))
    base, options = request.getfixturevalue("s3")
    return Run.at(f"{base}/{tmp_path.name}{options}")


def manifest(artefact: Artefact, **changes: object) -> Manifest:
    folder = artefact.folder
    facts: dict = {
        "artefact": artefact.name,
        "fingerprint": artefact.fingerprint,
        "code": "c",
        "package": "0",
        "engine": {"name": "none"},
        "config": {},
        "inputs": {},
        "files": {name: folder.checksum(name) for name in folder.files()},
        "counts": {"in": 1},
        "metrics": {},
        "seconds": 1.0,
        "created": datetime.now(UTC),
    }
    return Manifest(**(facts | changes))


def test_an_artefact_counts_only_when_its_manifest_is_there(run: Run) -> None:
    artefact = run.artefact("keywords", "f1")
    artefact.folder.write_bytes("items/a.bin", b"hello")
    assert not artefact.published
    assert run.published("keywords") == []
    artefact.publish(manifest(artefact))
    assert artefact.published
    (found,) = run.published("keywords")
    assert found.manifest.counts == {"in": 1}
    assert found.manifest.files["items/a.bin"].bytes == 5
    assert found.folder.read_bytes("items/a.bin") == b"hello"


def test_the_newest_artefact_comes_first(run: Run) -> None:
    for day, name in ((1, "old"), (3, "new"), (2, "middle")):
        artefact = run.artefact("keywords", name)
        artefact.publish(manifest(artefact, created=datetime(2026, 1, day, tzinfo=UTC)))
    assert [artefact.fingerprint for artefact in run.published("keywords")] == ["new", "middle", "old"]


def test_clearing_leaves_nothing_published(run: Run) -> None:
    artefact = run.artefact("keywords", "f1")
    artefact.folder.write_bytes("deep/er/a.bin", b"x")
    artefact.publish(manifest(artefact))
    artefact.folder.clear()
    assert not Artefact("keywords", "f1", artefact.folder).published
    assert artefact.folder.files() == []


def test_a_uri_of_a_file_opens_it_from_anywhere(run: Run) -> None:
    (run.folder / "below").write_bytes("a.txt", b"text")
    again = Folder.at((run.folder / "below").uri("a.txt"))
    with again.filesystem.open_input_stream(again.path) as stream:
        assert stream.read() == b"text"


def test_a_folder_goes_to_another_machine_and_comes_back(run: Run, tmp_path: Path) -> None:
    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "a").write_bytes(b"1")
    (tmp_path / "made" / "deep" / "b").write_bytes(b"2")
    folder = run.artefact("keywords", "f" * 20).folder / "kept"
    folder.upload(tmp_path / "made")
    assert folder.files() == ["a", "deep/b"]
    folder.download(tmp_path / "fetched")
    assert (tmp_path / "fetched" / "a").read_bytes() == b"1"
    assert (tmp_path / "fetched" / "deep" / "b").read_bytes() == b"2"


def test_a_missing_a_damaged_and_a_newer_manifest_are_told_apart(tmp_path: Path) -> None:
    artefact = Run.at(str(tmp_path)).artefact("keywords", "f1")
    with pytest.raises(ArtefactError, match="no such artefact, or it is unfinished"):
        _ = artefact.manifest
    artefact.folder.write_bytes(MANIFEST, b"{")
    with pytest.raises(ArtefactError, match=r"the manifest is damaged: .* Remove its folder and give the job again"):
        _ = Artefact("keywords", "f1", artefact.folder).manifest
    newer = json.loads(manifest(artefact).model_dump_json()) | {"schema_version": 99}
    artefact.folder.write_bytes(MANIFEST, json.dumps(newer).encode())
    with pytest.raises(ArtefactError, match="schema version 99 is newer"):
        _ = Artefact("keywords", "f1", artefact.folder).manifest


def test_the_digest_follows_the_content_and_not_the_names_of_files(tmp_path: Path) -> None:
    digests = []
    for number, (name, content) in enumerate([("a", b"1"), ("b", b"1"), ("a", b"2")]):
        artefact = Run.at(str(tmp_path)).artefact("x", str(number))
        artefact.folder.write_bytes(name, content)
        digests.append(manifest(artefact).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_code_is_fingerprinted_by_its_source(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("y = 1\n")
    before = code_fingerprint(["room", "other"], tmp_path)
    assert code_fingerprint(["other", "room"], tmp_path) == before
    (tmp_path / "room" / "a.py").write_text("x = 2\n")
    assert code_fingerprint(["room", "other"], tmp_path) != before


def test_sources_are_fingerprinted_by_name_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    folder = Folder.at(str(tmp_path))
    before = source_fingerprint(folder)
    assert source_fingerprint(folder) == before
    (tmp_path / "a.csv").write_text("22")
    assert source_fingerprint(folder) != before


@pytest.mark.parametrize("uri", ["nowhere://x/y", "relative/path"])
def test_what_no_filesystem_answers_to_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=uri):
        Folder.at(uri)


def test_a_half_written_file_is_not_seen(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    with pytest.raises(TypeError):
        folder.write_bytes("a.bin", "text, not bytes")  # type: ignore[arg-type]
    assert not folder.exists("a.bin")
