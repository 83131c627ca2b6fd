"""Sequence encoders as recommenders: the item whose embedding lies nearest to that of the history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.retrieve.encoders import load_encoder
from mmsrarec_ray.retrieve.fit import EncoderTask, finished
from mmsrarec_ray.retrieve.folders import encoder_folder, name_of
from mmsrarec_ray.retrieve.train import train_encoders
from mmsrarec_ray.settings import Encoder as EncoderSettings
from mmsrarec_ray.settings import Train as TrainSettings
from mmsrarec_ray.store import Folder, Run


class Sequential(Method):
    """SASRec, GRU4Rec or BERT4Rec, trained by Ray Train; an encoder that the run has already is taken as it is.

    Items without a training interaction score just below all others.
    """

    def __init__(
        self,
        kind: str,
        settings: EncoderSettings,
        train: TrainSettings,
        seed: int,
        run: Run,
        renew: Callable[[Folder], None] = lambda folder: None,
    ):
        """kind: 'sasrec', 'gru4rec' or 'bert4rec'; run: where encoders are kept; renew: called with the folder of each
        before it is looked into."""
        self.name, self.renew = kind, renew
        self.settings, self.train, self.seed, self.store = settings, train, seed, run

    def task(self, dataset: Dataset) -> EncoderTask:
        """What has to be trained on a dataset, and where it goes."""
        about = (self.name, self.settings, self.seed, dataset.n_items, dataset.train, dataset.validation)
        return EncoderTask(f"{self.name}, seed {self.seed}", *about, encoder_folder(self.store, self.train, *about))

    def learn(self, dataset: Dataset) -> None:
        task = self.task(dataset)
        self.renew(task.folder)
        there = finished(task.folder)
        (training,) = train_encoders([task], self.train)
        self.earlier = {name_of(task.folder): training.seconds} if there else {}
        self.encoder = load_encoder(task.folder)

    def score_all(self, queries: Queries) -> np.ndarray:
        return self.encoder.score_all(queries)
