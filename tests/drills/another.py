"""Another bundle of the same run, for what exchanges bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import safetensors.numpy

from mmsrarec_ray.adapters import ADAPTER
from mmsrarec_ray.store import Run


@contextmanager
def another_bundle(run: Run) -> Iterator[str]:
    """The same parts with an adapter of other weights, as a pipeline of the run, for a while: its fingerprint."""
    made, before = run.published("recommender")[0], run.published("pipeline")[0]
    other, after = run.artefact("recommender", "0" * 20), run.artefact("pipeline", "1" * 20)
    try:
        for name in made.folder.files():
            other.folder.write_bytes(name, made.folder.read_bytes(name))
        weights = f"{ADAPTER}/adapter_model.safetensors"
        halved = {name: array / 2 for name, array in safetensors.numpy.load(made.folder.read_bytes(weights)).items()}
        other.folder.write_bytes(weights, safetensors.numpy.save(halved))
        files = made.manifest.files | {weights: other.folder.checksum(weights)}
        other.publish(made.manifest.model_copy(update={"fingerprint": other.fingerprint, "files": files}))
        summary = json.loads(before.folder.read_bytes("summary.json"))
        summary["tune_recommender"]["artefact"] = other.folder.path
        after.folder.write_bytes("summary.json", json.dumps(summary).encode())
        after.publish(before.manifest.model_copy(update={"fingerprint": after.fingerprint}))
        yield after.fingerprint
    finally:  # whoever works in this run later shall find one of each
        other.folder.remove()
        after.folder.remove()
