"""The files in scripts/deploy agree with each other and with the server."""

import importlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from serving.commands.http import http
from serving.errors import UserError
from serving.http.app import create_app
from serving.http.keys import VARIABLE, KeyStore
from serving.http.ray_app import Settings, application
from serving.http.request_limits import RequestLimits
from serving.http.served_model import open_models
from serving.http.server import CLOSING_SECONDS
from serving.http.state import ServerState

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "scripts" / "deploy"
BASE = DEPLOY / "base"
SECRET = "x" * 64


def read(path: Path) -> dict[str, Any]:
    (document,) = yaml.safe_load_all(path.read_text())
    assert isinstance(document, dict)
    return document


def resources() -> dict[str, dict[str, Any]]:
    """Those that kustomize applies, by kind."""
    names = read(BASE / "kustomization.yaml")["resources"]
    documents = [read(BASE / name) for name in names]
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def deployment() -> dict[str, Any]:
    spec: dict[str, Any] = resources()["Deployment"]["spec"]
    return spec


@pytest.fixture(scope="module")
def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def server(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def options(server: dict[str, Any]) -> dict[str, Any]:
    """What the command understands of its arguments; an unknown one is an error."""
    command, *arguments = server["args"]
    assert command == "http"
    return http.make_context("http", arguments).params


def test_kustomize_applies_every_file() -> None:
    names = read(BASE / "kustomization.yaml")["resources"]
    assert sorted(names) == sorted(
        {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    )
    assert set(resources()) == {
        "Namespace",
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kustomize_renders_it(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    (tmp_path / "base" / "api-key.env").write_text(f"{VARIABLE}={SECRET}\n")
    command = ["kubectl", "kustomize", tmp_path / "base"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    assert {document["kind"] for document in rendered} == {*resources(), "Secret"}
    assert {
        document["metadata"].get("namespace")
        for document in rendered
        if document["kind"] != "Namespace"
    } == {"serve-llm"}


def probes(server: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: probe["httpGet"] for name, probe in server.items() if name.endswith("Probe")}


def test_probes_ask_for_what_the_application_answers_without_a_key(server: dict[str, Any]) -> None:
    keys = KeyStore.open(None, {VARIABLE: SECRET})
    app = create_app(ServerState(open_models({}, {}), RequestLimits(), keys))
    asked = {name: probe["path"] for name, probe in probes(server).items()}
    assert asked.pop("livenessProbe") == "/health"
    assert asked == {"startupProbe": "/ready", "readinessProbe": "/ready"}
    client = TestClient(app)
    assert {path: client.get(path).status_code for path in ("/health", "/ready")} == {
        "/health": 200,
        "/ready": 200,
    }
    assert client.get("/v1/models").status_code == 401


def test_ports_agree(server: dict[str, Any], options: dict[str, Any]) -> None:
    (port,) = server["ports"]
    assert port["containerPort"] == options["port"]
    assert {server[name]["httpGet"]["port"] for name in server if name.endswith("Probe")} == {
        port["name"]
    }
    (served,) = resources()["Service"]["spec"]["ports"]
    assert served["targetPort"] == port["name"]
    (rule,) = resources()["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": port["name"]}]
    assert f"EXPOSE {options['port']}\n" in (DEPLOY / "Dockerfile").read_text()


def test_everything_selects_the_same_pods(deployment: dict[str, Any]) -> None:
    labels = deployment["template"]["metadata"]["labels"]
    made = resources()
    assert deployment["selector"]["matchLabels"] == labels
    assert made["Service"]["spec"]["selector"] == labels
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    target = made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    name = made["Deployment"]["metadata"]["name"]
    assert (target["kind"], target["name"]) == ("Deployment", name)
    assert "replicas" not in deployment


def test_pods_have_the_time_to_drain(
    pod: dict[str, Any], server: dict[str, Any], options: dict[str, Any]
) -> None:
    command, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed = int(seconds) + options["drain_seconds"] + CLOSING_SECONDS
    assert needed < pod["terminationGracePeriodSeconds"]


def test_the_server_may_listen_and_has_a_key(
    server: dict[str, Any], options: dict[str, Any]
) -> None:
    assert options["insecure_http"]
    (source,) = server["envFrom"]
    (secret,) = read(BASE / "kustomization.yaml")["secretGenerator"]
    assert source["secretRef"]["name"] == secret["name"]
    assert (ROOT / ".gitignore").read_text().count(
        f"/{BASE.relative_to(ROOT)}/{secret['envs'][0]}"
    ) == 1


def test_threads_are_the_cpus(server: dict[str, Any], options: dict[str, Any]) -> None:
    needs = server["resources"]
    assert needs["requests"] == needs["limits"]
    assert int(needs["requests"]["cpu"]) == options["threads"]


def test_pods_may_do_little(pod: dict[str, Any], server: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert mounts["/bundles"]["readOnly"]
    for path in ("/tmp", "/dev/shm"):
        assert "emptyDir" in volumes[mounts[path]["name"]]
    assert resources()["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_image_has_no_training_framework() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "ARG EXTRAS=http\n" in dockerfile
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["http"]]
    assert not {"torch", "transformers", "onnx"} & {re.split(r"\W", name)[0] for name in needed}


def test_the_ray_service_starts_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    service = read(DEPLOY / "rayservice.yaml")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    module, name = app["import_path"].split(":")
    assert getattr(importlib.import_module(module), name) is application
    settings = Settings(**app["args"])
    monkeypatch.setenv(VARIABLE, SECRET)
    bound = application(settings)._bound_deployment  # what Ray Serve deploys
    assert bound.ray_actor_options["num_cpus"] == settings.cpus

    cluster = service["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert float(worker["resources"]["limits"]["cpu"]) == settings.cpus
    assert workers["maxReplicas"] == settings.max_replicas
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > settings.drain_seconds
    assert head["ports"][0]["containerPort"] == config["http_options"]["port"]
    assert head["envFrom"] == worker["envFrom"]


def test_a_ray_service_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UserError, match="it has no API key"):
        application(Settings(bundles={}))
