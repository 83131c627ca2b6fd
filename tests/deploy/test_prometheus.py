"""Prometheus' configuration, the alerts and the dashboard: promtool accepts them, and they name what there is."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.prometheus import DEPLOYED, ROOT, alerts, metrics_of, panels, promtool

REPORTER = "ray/dashboard/modules/reporter/reporter_agent.py"
PANELS = "ray/dashboard/modules/metrics/dashboards"
SERVE = "ray/serve/_private"
ENGINE = "vllm/v1/metrics/loggers.py"
OTHERS = {
    "up": None,  # Prometheus' own
    "kuberay_job_deployment_status": None,  # of KubeRay's operator: controllers/ray/metrics/ray_job_metrics.go
    "ray_data_output_rows": (f"{PANELS}/data_dashboard_panels.py", "ray_data_output_rows"),
    "ray_node_cpu_utilization": (REPORTER, '"node_cpu_utilization"'),
    "ray_node_disk_free": (REPORTER, '"node_disk_free"'),
    "ray_node_disk_usage": (REPORTER, '"node_disk_usage"'),
    "ray_node_gpus_utilization": (REPORTER, '"node_gpus_utilization"'),
    "ray_node_manager_unexpected_worker_failure_total": (
        f"{PANELS}/default_dashboard_panels.py",
        "ray_node_manager_unexpected_worker_failure_total",
    ),
    "ray_node_mem_total": (REPORTER, '"node_mem_total"'),
    "ray_node_mem_used": (REPORTER, '"node_mem_used"'),
    "ray_object_store_memory": (f"{PANELS}/default_dashboard_panels.py", "ray_object_store_memory"),
    "ray_resources": (f"{PANELS}/default_dashboard_panels.py", "ray_resources"),
    "ray_serve_deployment_processing_latency_ms_bucket": (
        f"{SERVE}/replica.py",
        '"serve_deployment_processing_latency_ms"',
    ),
    "ray_serve_deployment_replica_healthy": (f"{SERVE}/deployment_state.py", '"serve_deployment_replica_healthy"'),
    "ray_serve_deployment_request_counter_total": (f"{SERVE}/replica.py", '"serve_deployment_request_counter"'),
    "ray_serve_num_http_error_requests_total": (
        f"{SERVE}/request_ingress_metrics.py",
        'f"serve_num_{protocol_name}_error_requests"',
    ),
    "ray_serve_num_http_requests_total": (
        f"{SERVE}/request_ingress_metrics.py",
        'f"serve_num_{protocol_name}_requests"',
    ),
    "ray_vllm_generation_tokens_total": (ENGINE, '"vllm:generation_tokens"'),
    "ray_vllm_kv_cache_usage_perc": (ENGINE, '"vllm:kv_cache_usage_perc"'),
    "ray_vllm_num_requests_running": (ENGINE, '"vllm:num_requests_running"'),
    "ray_vllm_num_requests_waiting": (ENGINE, '"vllm:num_requests_waiting"'),
    "ray_vllm_prefix_cache_hits_total": (ENGINE, '"vllm:prefix_cache_hits"'),
    "ray_vllm_prefix_cache_queries_total": (ENGINE, '"vllm:prefix_cache_queries"'),
    "ray_vllm_prompt_tokens_total": (ENGINE, '"vllm:prompt_tokens"'),
}
"""Metrics that are not the project's -> a file of the installed package that names it, and how."""


@cache
def ours() -> set[str]:
    """What Prometheus sees of the metrics that the package's code makes."""
    found = set()
    for file in (ROOT / "mmsrarec_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                kind, name = node.func.attr, node.args[0]
                if isinstance(name, ast.Constant) and str(name.value).startswith("mmsrarec_"):
                    ends = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
                    found |= {f"ray_{name.value}{end}" for end in ends[kind]}
    return found


def test_metrics_are_found_in_queries() -> None:
    query = 'sum by (a, b) (rate(x_total{y="z"}[5m])) / on () max(u) > 0.1 unless on (t) s offset 5m or vector(0)'
    assert metrics_of(query) == {"x_total", "u", "s"}


@pytest.mark.parametrize(("name", "query"), [*panels(), *alerts()], ids=lambda value: value[:40])
def test_a_query_asks_for_what_there_is(name: str, query: str) -> None:
    asked = metrics_of(query)
    assert asked
    assert asked <= ours() | set(OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_the_installed_packages_have_the_metric(name: str) -> None:
    if OTHERS[name] is None:
        return
    file, text = OTHERS[name]
    package = importlib.util.find_spec(file.partition("/")[0])
    assert package is not None
    assert package.origin is not None
    assert text in (Path(package.origin).parents[1] / file).read_text()


def test_the_dashboard_shows_every_metric_of_the_project() -> None:
    shown = {metric for _, query in panels() for metric in metrics_of(query)}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in ours()} <= {
        re.sub("_(bucket|sum|count)$", "", name) for name in shown
    }


def test_panels_are_told_apart_and_ask_the_chosen_prometheus() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/mmsrarec.json").read_text())
    [variable] = dashboard["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    rows = dashboard["panels"]
    assert len({panel["id"] for panel in rows}) == len({panel["title"] for panel in rows}) == len(rows)
    for panel in rows:
        assert panel["type"] == "row" or panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_operations_say_what_to_do_at_each_alert() -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", manual, re.MULTILINE)) >= {name for name, _ in alerts()}


def test_promtool_accepts_the_configuration() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "config", "prometheus.yml")


def test_promtool_accepts_the_configuration_for_kubernetes(tmp_path: Path) -> None:
    """All but how pods are found: Debian builds Prometheus without that."""
    config = yaml.safe_load((DEPLOYED / "kubernetes.yml").read_text())
    for scraped in config["scrape_configs"]:
        assert scraped.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    config["rule_files"] = [str(DEPLOYED / name) for name in config["rule_files"]]
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(config))
    assert f"{len(alerts())} rules found" in promtool("check", "config", "kubernetes.yml", folder=tmp_path)


def test_alerts_come_when_they_should_and_else_not() -> None:
    """alerts.test.yml, which has a case for every alert."""
    promtool("test", "rules", "alerts.test.yml")
    cases = yaml.safe_load((DEPLOYED / "alerts.test.yml").read_text())["tests"]
    tested = {rule["alertname"] for case in cases for rule in case["alert_rule_test"] if rule.get("exp_alerts")}
    assert tested == {name for name, _ in alerts()}


def test_promtool_refuses_what_is_wrong(tmp_path: Path) -> None:
    """The checks above can fail: a query that is none, and an alert that is not what was expected."""
    good = (DEPLOYED / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(good.replace("sum by (stage)", "sum by stage"))
    with pytest.raises(AssertionError, match="could not parse expression"):
        promtool("check", "rules", "alerts.yml", folder=tmp_path)
    (tmp_path / "alerts.yml").write_text(good.replace("> 0.1", "> 0.3"))
    (tmp_path / "alerts.test.yml").write_text((DEPLOYED / "alerts.test.yml").read_text())
    with pytest.raises(AssertionError, match="ManyDegraded"):
        promtool("test", "rules", "alerts.test.yml", folder=tmp_path)


def test_promtool_parses_every_panel(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, (_, query) in enumerate(panels())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "panels.yml", folder=tmp_path)
