"""Kills what trains, in the middle of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil

from mmsrarec_ray.adapters import CHECKPOINTS


class Killer(threading.Thread):
    """Kills a training worker as soon as a whole checkpoint is in the folder."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.killed_after = folder, 0

    def run(self) -> None:
        while not (whole := sorted((self.folder / CHECKPOINTS).glob("*/complete"))):
            time.sleep(0.02)
        ours = psutil.Process(os.getpid()).children(recursive=True)
        workers = [process for process in ours if "RayTrainWorker" in " ".join(process.cmdline())]
        self.killed_after = int(whole[-1].parent.name)
        workers[-1].kill()
