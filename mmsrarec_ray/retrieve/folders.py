"""Where a run keeps its trained encoders, so that retrieval and evaluation train each once."""

from __future__ import annotations

import hashlib

from mmsrarec_ray.data.log import Cases, Sequences
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.settings import Train as TrainSettings
from mmsrarec_ray.store import Folder, Run, code_fingerprint, fingerprint

_CODE = ("retrieve/encoders", "retrieve/fit", "retrieve/validate")


def encoder_folder(
    run: Run,
    train_settings: TrainSettings,
    kind: str,
    settings: EncoderSettings,
    seed: int,
    n_items: int,
    train: Sequences,
    validation: Cases,
) -> Folder:
    """`<run>/encoders/<kind>/<fingerprint>` of what decides the weights: code, settings, seed and data."""
    import torch

    digest = hashlib.sha256()
    for array in (train.starts, train.items, validation.queries.histories.starts, validation.queries.histories.items):
        digest.update(array.tobytes())
    digest.update(validation.positives.tobytes())
    decides = {
        "code": code_fingerprint(_CODE),
        "torch": torch.__version__,
        "settings": settings.model_dump(),
        "workers": [train_settings.workers, train_settings.gpu],
        "seed": seed,
        "n_items": n_items,
        "data": digest.hexdigest(),
    }
    return run.folder / "encoders" / kind / fingerprint(decides)


def name_of(folder: Folder) -> str:
    """What tells an encoder from all others of a run: `<kind>/<fingerprint>`. folder: as `encoder_folder` gives it."""
    return "/".join(folder.path.split("/")[-2:])
