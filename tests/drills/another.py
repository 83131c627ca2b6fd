"""Another bundle of the same run, for what exchanges bundles."""

from __future__ import annotations

import json

import safetensors.numpy

from mmsrarec_ray.adapters import ADAPTER
from mmsrarec_ray.store import Run


def another_bundle(run: Run) -> str:
    """The same parts with an adapter of other weights, as a pipeline of the run; returns its fingerprint."""
    made = run.published("recommender")[0]
    other = run.artefact("recommender", "0" * 20)
    for name in made.folder.files():
        other.folder.write_bytes(name, made.folder.read_bytes(name))
    weights = f"{ADAPTER}/adapter_model.safetensors"
    halved = {name: array / 2 for name, array in safetensors.numpy.load(made.folder.read_bytes(weights)).items()}
    other.folder.write_bytes(weights, safetensors.numpy.save(halved))
    files = made.manifest.files | {weights: other.folder.checksum(weights)}
    other.publish(made.manifest.model_copy(update={"fingerprint": other.fingerprint, "files": files}))
    before = run.published("pipeline")[0]
    summary = json.loads(before.folder.read_bytes("summary.json"))
    summary["tune_recommender"]["artefact"] = other.folder.path
    after = run.artefact("pipeline", "1" * 20)
    after.folder.write_bytes("summary.json", json.dumps(summary).encode())
    after.publish(before.manifest.model_copy(update={"fingerprint": after.fingerprint}))
    return after.fingerprint
