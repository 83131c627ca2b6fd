"""The manifests of deploy/kuberay fit KubeRay's schemas, the jobs, the settings and each other."""

from __future__ import annotations

import copy
import gzip
import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from mmsrarec_ray.config import Config, load_tree
from mmsrarec_ray.errors import ArtefactError
from mmsrarec_ray.estimate.stages import ESTIMATED, Estimate
from mmsrarec_ray.estimate.table import Estimates
from mmsrarec_ray.models.engine import engine_cpus
from mmsrarec_ray.serve.graph import _overrides, application

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))
SCHEMAS = Path(__file__).parent / "kuberay"
"""ray-operator/config/crd/bases of KubeRay v1.7.0."""
HOME = "/opt/mmsrarec/"
"""Where the image has the project."""


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for file in FILES for document in documents(file) if document["kind"] == kind]


def one(kind: str) -> dict[str, Any]:
    [found] = of_kind(kind)
    return found


def clusters() -> list[dict[str, Any]]:
    return [one("RayCluster")["spec"], one("RayService")["spec"]["rayClusterConfig"]]


def jobs() -> list[dict[str, Any]]:
    """Of the RayJobs and of what the RayCronJob makes."""
    return [job["spec"] for job in of_kind("RayJob")] + [one("RayCronJob")["spec"]["jobTemplate"]]


def templates(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the head's pod and of those of each group of workers."""
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def containers() -> list[dict[str, Any]]:
    pods = [template["spec"] for cluster in clusters() for template in templates(cluster)]
    return [container for pod in pods for container in pod["containers"]]


def settings(overrides: Sequence[str] = ()) -> Config:
    """Those of the ConfigMap, resolved, and overrides of these."""
    resolved = load_tree(yaml.safe_load(one("ConfigMap")["data"]["settings.yaml"]))
    return load_tree(resolved.model_dump(mode="json"), overrides)


@cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """What KubeRay's definition of a kind says of its version v1, closed against unknown fields."""
    text = gzip.decompress((SCHEMAS / f"ray.io_{kind.lower()}s.yaml.gz").read_bytes())
    definition = yaml.load(text, yaml.CSafeLoader)
    [version] = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """Kubernetes drops fields that a schema does not name; here they are refused."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: closed(value) for key, value in schema.items()}
    if "properties" in done and not done.get("x-kubernetes-preserve-unknown-fields"):
        done.setdefault("additionalProperties", False)
    return done


def test_kinds_are_known() -> None:
    """Each kind is either KubeRay's, and checked below, or one of Kubernetes' own two."""
    kinds = {document["kind"]: document["apiVersion"] for file in FILES for document in documents(file)}
    ours = dict.fromkeys(("RayCluster", "RayJob", "RayCronJob", "RayService"), "ray.io/v1")
    assert kinds == ours | {"PersistentVolumeClaim": "v1", "ConfigMap": "v1"}


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayCronJob", "RayService"])
def test_kuberay_accepts_them(kind: str) -> None:
    found = of_kind(kind)
    errors = [error.message for document in found for error in kuberay(kind).iter_errors(document)]
    assert found
    assert errors == []


def test_kuberay_refuses_what_is_wrong() -> None:
    """The check above can fail: a field that is misspelt deep within, a wrong type, a missing part, a wrong word."""
    good = one("RayCluster")
    kuberay("RayCluster").validate(good)
    misspelt, typed, missing, worded = (copy.deepcopy(good) for _ in range(4))
    [container] = misspelt["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    container["volumeMount"] = container.pop("volumeMounts")
    typed["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "four"
    del missing["spec"]["headGroupSpec"]["template"]
    worded["spec"]["autoscalerOptions"]["version"] = "v3"
    for bad, said in ((misspelt, "volumeMount"), (typed, "four"), (missing, "template"), (worded, "v3")):
        with pytest.raises(jsonschema.ValidationError, match=said):
            kuberay("RayCluster").validate(bad)


def test_there_is_a_job_for_every_stage() -> None:
    stages = {file.stem for file in (ROOT / "jobs").glob("*.py")} - {"build_model"}  # which makes models, not runs
    assert {job["metadata"]["name"] for job in of_kind("RayJob")} == {
        f"mmsrarec-{stage.replace('_', '-')}" for stage in stages
    }


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["entrypoint"].split()[1].rpartition("/")[2])
def test_a_job_starts_what_there_is(job: dict[str, Any]) -> None:
    """Its script is in the image, its settings are mounted where it looks, and it joins the cluster of this folder."""
    python, script, option, file, *words = shlex.split(job["entrypoint"])
    assert (python, option) == ("python", "--config")
    assert script.startswith(HOME)
    assert (ROOT / script.removeprefix(HOME)).is_file()
    [head] = one("RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    [mounted] = [mount["mountPath"] for mount in head["volumeMounts"] if mount["name"] == "settings"]
    assert file == f"{mounted}/settings.yaml"
    settings(words)
    assert job["clusterSelector"] == {"ray.io/cluster": one("RayCluster")["metadata"]["name"]}


def test_a_job_is_named_as_its_script() -> None:
    for job in of_kind("RayJob"):
        stage = job["metadata"]["name"].removeprefix("mmsrarec-").replace("-", "_")
        assert f"/jobs/{stage}.py" in job["spec"]["entrypoint"]


def test_the_engines_of_the_settings_fit_the_workers() -> None:
    config, cluster = settings(), one("RayCluster")["spec"]
    room = {group["groupName"]: group["maxReplicas"] for group in cluster["workerGroupSpecs"]}
    asked = {
        group["groupName"]: group["template"]["spec"]["containers"][0]["resources"]["requests"]
        for group in cluster["workerGroupSpecs"]
    }
    assert config.engine.concurrency * config.engine.gpus <= room["gpu"]
    assert config.engine.cpus <= int(asked["gpu"]["cpu"])
    assert engine_cpus(config) <= sum(room[name] * int(asked[name]["cpu"]) for name in ("cpu", "gpu"))


def test_every_job_fits_the_gpus_that_it_asks_for() -> None:
    for words in {tuple(shlex.split(job["entrypoint"])[4:]) for job in jobs()}:
        found = Estimates.of(settings(words), list(ESTIMATED), None)
        assert {name: isinstance(each, Estimate) and each.fits for name, each in found.stages.items()} == dict.fromkeys(
            ESTIMATED, True
        ), found.text()


def test_the_service_is_one_that_serve_and_the_project_accept() -> None:
    spec = one("RayService")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    [application] = config.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    arguments = dict(application.args)
    assert arguments.pop("run") == settings().run
    assert isinstance(arguments.pop("pipeline"), str)
    served = settings(_overrides(arguments))  # as the service does: over those that the recommender was made with
    for template in templates(spec["rayClusterConfig"]):
        names = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        assert {served.serve.write_keys_env, served.serve.read_keys_env} <= names
        assert served.serve.store is not None
        assert served.serve.store.removeprefix("env:") in names


def test_the_service_takes_the_pipeline_that_its_manifest_names(tmp_path: Path) -> None:
    """Whatever pipelines the run has: what stands there before somebody has chosen is refused."""
    spec = yaml.safe_load(one("RayService")["spec"]["serveConfigV2"])
    arguments = spec["applications"][0]["args"] | {"run": str(tmp_path)}
    with pytest.raises(ArtefactError, match="pipeline/FINGERPRINT: there is no such pipeline"):
        application(arguments)
    assert "`FINGERPRINT`" in (ROOT / "docs/operations.md").read_text(), "the page says what stands there"


def test_the_service_is_upgraded_step_by_step() -> None:
    """What KubeRay's operator asks beyond the schema: an autoscaler, and steps no larger than the surge."""
    spec = one("RayService")["spec"]
    assert spec["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    options = spec["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"]


def test_versions_agree() -> None:
    """Ray's is that of the lock, the images' that of the package; groups with a GPU have the image with CUDA."""
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert {cluster["rayVersion"] for cluster in clusters()} == {lock["ray"]}
    for container in containers():
        kind = "gpu" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu"
        assert container["image"] == f"registry.example.com/mmsrarec-ray:{version[1]}-{kind}"


def test_pods_are_watched_bounded_and_without_rights() -> None:
    for cluster in clusters():
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["authOptions"] == {"mode": "token"}
        for template in templates(cluster):
            assert template["spec"]["securityContext"]["runAsNonRoot"]
            assert "restartPolicy" not in template["spec"]  # with this autoscaler KubeRay takes none but Never
    for container in containers():
        assert container["livenessProbe"]
        assert container["readinessProbe"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]


def test_secrets_stand_in_no_file() -> None:
    secret = [
        each for container in containers() for each in container["env"] if re.search("TOKEN|KEY|STORE", each["name"])
    ]
    assert secret
    assert all(set(each) == {"name", "valueFrom"} and "secretKeyRef" in each["valueFrom"] for each in secret)


def volumes() -> Iterator[tuple[str, str]]:
    """(kind, name) of what pods ask for."""
    for cluster in clusters():
        for template in templates(cluster):
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    yield "ConfigMap", volume["configMap"]["name"]
                else:
                    yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def test_volumes_are_there_and_mounted() -> None:
    kinds = ("ConfigMap", "PersistentVolumeClaim")
    assert set(volumes()) == {(kind, each["metadata"]["name"]) for kind in kinds for each in of_kind(kind)}
    for cluster in clusters():
        for template in templates(cluster):
            named = {volume["name"] for volume in template["spec"]["volumes"]}
            [container] = template["spec"]["containers"]
            assert {mount["name"] for mount in container["volumeMounts"]} == named
