"""What `/metrics` gathers from the nodes of a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from mmsrarec_ray.serve.metrics import gathered
from tests.conftest import Page, Web
from tests.programs import free_port


def test_a_node_that_does_not_answer_costs_no_more_than_its_own_figures(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = b"# HELP ray_mmsrarec_refused x\nray_mmsrarec_refused 3\nray_other 1\n"
    web.put("/metrics", Page(told, content_type="text/plain"))

    def node(port: int, alive: bool = True) -> dict[str, Any]:
        return {"Alive": alive, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port}

    there = int(web.root.rpartition(":")[2])
    monkeypatch.setattr("ray.nodes", lambda: [node(free_port()), node(there), node(free_port(), alive=False)])
    assert gathered() == "# HELP ray_mmsrarec_refused x\nray_mmsrarec_refused 3\n"
