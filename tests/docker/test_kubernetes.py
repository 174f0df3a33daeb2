"""The manifests: their schemas, what they refer to, and what a pod may do and how long it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldot_milvus.ingest.tasks import INGEST
from ldot_milvus.settings import Settings
from ldot_milvus.workers.application import make_app
from tests.conftest import ROOT
from tests.docker.custom_resources import SPECS
from tests.docker.files import DOCKER, SETTINGS, command, environment, last, run_tool, tool

BASE = DOCKER / "kubernetes" / "base"
KUBERNETES = "1.30"

Resource = dict[str, Any]


def built(kustomization: Path) -> list[Resource]:
    """Return the resources of a kustomization, as kubectl builds them, or those of the files without kubectl."""
    import shutil

    if shutil.which("kubectl"):
        done = run_tool("kubectl", "kustomize", str(kustomization))
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    if kustomization != BASE:
        pytest.skip("kubectl is not installed, which builds the kustomization")
    files = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [resource for file in files for resource in yaml.safe_load_all((BASE / file).read_text())]


@pytest.fixture(scope="module")
def resources() -> list[Resource]:
    return built(BASE)


@pytest.fixture(scope="module", params=["base", "gpu"])
def either(request: pytest.FixtureRequest) -> list[Resource]:
    return built(DOCKER / "kubernetes" / request.param)


def one(resources: list[Resource], kind: str, name: str) -> Resource:
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return found


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    for resource in resources:
        if resource["kind"] in ("Deployment", "StatefulSet"):
            yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def containers(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    for name, pod in pods(resources):
        for container in pod["containers"]:
            yield name, container


def keyed(value: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key, at any depth."""
    if isinstance(value, dict):
        yield from (found for name, found in value.items() if name == key)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from keyed(part, key)


def test_the_schemas(either: list[Resource]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install 'ldot-milvus[dev]'").validate
    import jsonschema

    for resource in either:
        kind = f"{resource['apiVersion']}/{resource['kind']}"
        if kind in SPECS:
            jsonschema.validate(resource["spec"], SPECS[kind])
        else:
            validate(resource, KUBERNETES, strict=True)


def test_a_wrong_field_is_noticed(resources: list[Resource]) -> None:
    """The check above can fail."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install 'ldot-milvus[dev]'")
    import jsonschema

    deployment = one(resources, "Deployment", "worker")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**deployment, "spec": {**deployment["spec"], "replica": 1}}, KUBERNETES, strict=True
        )
    scaled = one(resources, "ScaledObject", "worker")["spec"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**scaled, "minReplicas": 1}, SPECS["keda.sh/v1alpha1/ScaledObject"])


def test_pods_are_restricted(either: list[Resource]) -> None:
    for name, pod in pods(either):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for name, container in containers(either):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }, name  # fmt: skip
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", ["worker", "api"])
def test_the_user_and_the_volumes_are_those_of_the_image(resources: list[Resource], name: str) -> None:
    pod = one(resources, "Deployment", name)["spec"]["template"]["spec"]
    user, group = map(int, last(name, "USER").split(":"))
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, group, group)
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    variables = environment(name)
    for folder in (variables["HOME"], variables["HF_HOME"], last(name, "WORKDIR"), "/tmp"):
        assert any(Path(folder).is_relative_to(mount) for mount in mounted), folder


def test_images_are_those_of_the_dockerfile(resources: list[Resource]) -> None:
    images = yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]
    names = {image["name"] for image in images}
    files = [yaml.safe_load_all((BASE / file).read_text()) for file in ("worker.yaml", "api.yaml")]
    ours = {container["image"] for file in files for _, container in containers(list(file))}
    assert ours == names == {"ldot-worker", "ldot-api"}
    text = (DOCKER / "Dockerfile").read_text()
    assert names <= set(re.findall(r"-t (ldot-\w+)", text))


def test_variables_are_settings_and_valid(resources: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = one(resources, "ConfigMap", "ldot")["data"]
    for name in ("worker", "api"):
        container = one(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        own = {variable["name"]: variable.get("value") for variable in container["env"]}
        given = [*shared, *own, *environment(name)]
        assert {variable for variable in given if variable.startswith("LDOT_")} <= SETTINGS
        with monkeypatch.context() as patch:
            for variable, value in {**shared, **own}.items():
                expanded = re.sub(r"\$\((\w+)\)", lambda found: f"value-of-{found[1]}", value or "x")
                # Kubernetes expands only what is defined further up.
                assert all(
                    list(own).index(used) < list(own).index(variable)
                    for used in re.findall(r"\$\((\w+)\)", value or "")
                )
                patch.setenv(variable, expanded)
            settings = Settings()
        assert settings.token == "root:value-of-MILVUS_PASSWORD"
        assert settings.broker == "redis://:value-of-REDIS_PASSWORD@redis:6379/0"


def test_secrets_are_referred_to_and_created_by_the_guide(resources: list[Resource]) -> None:
    assert not [resource for resource in resources if resource["kind"] == "Secret"]
    references = [*keyed(resources, "secretKeyRef"), *next(keyed(resources, "secretTargetRef"))]
    keys = {reference["key"] for reference in references}
    storage = one(resources, "Milvus", "milvus")["spec"]["dependencies"]["storage"]
    assert {reference["name"] for reference in references} == {"ldot", storage["secretRef"]}
    guide = (ROOT / "docs" / "docker.md").read_text()
    assert set(re.findall(r"--from-literal=([\w-]+)=", guide)) == keys | {"accesskey", "secretkey"}


def test_workers_grow_with_the_queue(
    resources: list[Resource], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of ``enqueue`` is counted in the list that KEDA looks at."""
    import redis

    scaled = one(resources, "ScaledObject", "worker")["spec"]
    assert scaled["scaleTargetRef"]["name"] == "worker"
    assert 1 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    authentication = one(resources, "TriggerAuthentication", trigger["authenticationRef"]["name"])
    (password,) = authentication["spec"]["secretTargetRef"]
    assert password["parameter"] == "password"
    service = one(resources, "Service", "redis")
    host, port = trigger["metadata"]["address"].split(":")
    assert host == f"redis.{yaml.safe_load((BASE / 'kustomization.yaml').read_text())['namespace']}.svc"
    assert int(port) == service["spec"]["ports"][0]["port"]

    broker = re.sub(r"/\d+$", "/9", redis_url)  # a database of its own
    client = redis.Redis.from_url(broker)
    client.flushdb()
    monkeypatch.setenv("LDOT_BROKER", broker)
    app = make_app(Settings())
    try:
        for count in (1, 2):
            app.send_task(INGEST.celery_name, [{}], queue=INGEST.queue(Settings().queue))
            assert client.llen(trigger["metadata"]["listName"]) == count
    finally:
        client.flushdb()
        app.close()


def test_a_worker_that_is_stopped_can_finish_its_chunk(either: list[Resource], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = one(either, "ConfigMap", "ldot")["data"]["LDOT_VISIBILITY_TIMEOUT"]
    monkeypatch.setenv("LDOT_VISIBILITY_TIMEOUT", seconds)
    pod = one(either, "Deployment", "worker")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= make_app(Settings()).conf.task_time_limit


def test_each_deployment_has_a_disruption_budget_that_lets_a_node_be_drained(resources: list[Resource]) -> None:
    for name in ("worker", "api"):
        deployment = one(resources, "Deployment", name)
        budget = one(resources, "PodDisruptionBudget", name)["spec"]
        assert budget["selector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        replicas = deployment["spec"].get("replicas", 1)
        assert budget.get("maxUnavailable", 0) >= 1 or budget["minAvailable"] < replicas


def test_probes(resources: list[Resource]) -> None:
    """Each has a start-up and a readiness probe; a liveness probe must not depend on another server."""
    for name, container in containers(resources):
        assert container.keys() >= {"startupProbe", "readinessProbe"}, name
    worker = dict(containers(resources))["worker"]
    assert "livenessProbe" not in worker
    assert worker["readinessProbe"]["exec"]["command"][-1].split()[1:4] == command("worker")[:3]
    api = dict(containers(resources))["api"]
    assert api["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert api["startupProbe"]["httpGet"]["path"] == api["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    hosts = next(variable["value"] for variable in api["env"] if variable["name"] == "LDOT_SERVE_HOSTS").split(",")
    for probe in ("livenessProbe", "startupProbe", "readinessProbe"):
        (header,) = api[probe]["httpGet"]["httpHeaders"]
        assert header["name"] == "Host"
        assert header["value"] in hosts
    assert str(api["ports"][0]["containerPort"]) == command("api")[-1]


def test_services_select_pods_and_ports(resources: list[Resource]) -> None:
    for service in (resource for resource in resources if resource["kind"] == "Service"):
        name = service["metadata"]["name"]
        pod = next(r for r in resources if r["kind"] in ("Deployment", "StatefulSet") and r["metadata"]["name"] == name)
        assert service["spec"]["selector"].items() <= pod["spec"]["template"]["metadata"]["labels"].items()
        ports = pod["spec"]["template"]["spec"]["containers"][0]["ports"]
        for port in service["spec"]["ports"]:
            assert port.get("targetPort", port["port"]) in [value for each in ports for value in each.values()]


def test_milvus_and_the_region_data_are_in_the_same_object_store(resources: list[Resource]) -> None:
    data = one(resources, "ConfigMap", "ldot")["data"]
    milvus = one(resources, "Milvus", "milvus")["spec"]
    host = data["AWS_ENDPOINT_URL"].partition("://")[2]
    assert milvus["dependencies"]["storage"]["endpoint"].split(":")[0] == host
    assert milvus["config"]["minio"]["region"] == data["AWS_DEFAULT_REGION"]
    assert data["LDOT_STORE"] == f"http://{one(resources, 'Milvus', 'milvus')['metadata']['name']}-milvus:19530"


def test_milvus_has_the_version_of_the_compose_file(either: list[Resource]) -> None:
    milvus = one(either, "Milvus", "milvus")["spec"]["components"]["image"]
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert milvus.removesuffix("-gpu") == services["milvus"]["image"]
    redis = one(either, "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert redis == services["redis"]["image"]


def test_the_gpu_workers_have_a_card_each() -> None:
    tool("kubectl")
    found = built(DOCKER / "kubernetes" / "gpu")
    worker = one(found, "Deployment", "worker")["spec"]["template"]["spec"]["containers"][0]
    assert worker["image"].split(":")[0].endswith("/ldot-worker-gpu")
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    milvus = one(found, "Milvus", "milvus")["spec"]["components"]
    assert milvus["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert milvus["image"].endswith("-gpu")


def test_the_version_of_the_images_is_the_project_s() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for folder in ("base", "gpu"):
        images = yaml.safe_load((DOCKER / "kubernetes" / folder / "kustomization.yaml").read_text())["images"]
        assert {image["newTag"] for image in images} == {version[1]}
