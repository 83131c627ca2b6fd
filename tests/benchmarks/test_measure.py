"""What benchmarks share: figures that are kept, and never taken for those of something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.measure import Report


def test_a_part_that_is_there_is_not_measured_again(tmp_path: Path) -> None:
    path, of = tmp_path / "below" / "report.json", {"settings": ["a=1"]}
    assert Report(path, of).part("one", lambda: {"seconds": 1}) == {"seconds": 1}
    again = Report(path, of)
    assert again.part("one", lambda: {"seconds": 2}) == {"seconds": 1}
    assert again.part("two", lambda: {"seconds": 2}) == {"seconds": 2}


def test_figures_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report(path, {"settings": ["a=1"]}).part("one", lambda: {"seconds": 1})
    with pytest.raises(SystemExit, match=r"report\.json: holds figures of .*a=1.*, not of .*a=2"):
        Report(path, {"settings": ["a=2"]})
