"""A job whose one stage lasts until a file `go` stands in its run folder: `python -m tests.patient run=FOLDER …`."""

from __future__ import annotations

import sys
import time
from typing import Any, ClassVar

from mmsrarec_ray.job import Outcome, Stage, main
from mmsrarec_ray.store import Artefact, Folder, Run


class Patient(Stage):
    """Write half, wait, write the rest."""

    name: ClassVar[str] = "patient"
    artefact: ClassVar[str] = "patience"
    code: ClassVar[tuple[str, ...]] = ("errors",)

    def settings(self) -> dict[str, Any]:
        return {"seed": self.config.split.seed}

    def engine(self) -> dict[str, Any]:
        return {"name": "none"}

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        kept = int(out.exists("half"))
        out.write_bytes("half", b"1")
        while not Run.at(self.config.run).folder.exists("go"):
            time.sleep(0.1)
        out.write_bytes("whole", b"2")
        return Outcome({"in": 2, "out": 2, "kept": kept})


if __name__ == "__main__":
    sys.exit(main(Patient))
