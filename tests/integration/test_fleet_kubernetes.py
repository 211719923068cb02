"""FLEET_DRIVER=kubernetes: the service against a cluster's API over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Cluster
from tests.support.service import RunningService
from tests.support.waiting import wait_until

MANIFESTS = Path(__file__).parents[2] / "config" / "kubernetes"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, cluster: Cluster) -> Iterator[RunningService]:
    running = RunningService(
        tmp_path,
        FLEET_DRIVER="kubernetes",
        FLOWER_ENABLED="false",
        KUBECONFIG=str(cluster.kubeconfig),
        KUBERNETES_NAMESPACE="shop",
        KUBERNETES_DEPLOYMENT="celery-worker",
    )
    cluster.nats_url = running.nats_url
    try:
        running.start()
        yield running
    finally:
        running.clean_up()


def test_replicas_and_pools_follow(service: RunningService, cluster: Cluster) -> None:
    """Replicas and their pools are as asked for; what Kubernetes refuses is told."""
    up = service.call("/api/v1/workers/scale", {"worker_count": 2, "concurrency": 2})
    workers = service.call("/api/v1/workers")["data"]["workers"]
    summary = service.call("/api/v1/status")["data"]["worker_summary"]
    restart = service.call(f"/api/v1/workers/{workers[0]['worker_id']}/restart", method="POST")
    removed = service.call(f"/api/v1/workers/{workers[0]['worker_id']}", method="DELETE")
    cluster.forbidden = True
    refused = service.call("/api/v1/workers/scale", {"worker_count": 3})
    cluster.forbidden = False

    assert up["status"] == "success", up
    assert up["data"]["after"] == {"worker_count": 2, "concurrency": 2}
    assert cluster.replicas == 2
    assert [(w["worker_type"], w["concurrency"]) for w in workers] == [("general", 2)] * 2
    assert summary["total_max_concurrent"] == 4
    assert restart["error_code"] == removed["error_code"] == "SCALING_ERROR"
    assert "kubectl delete pod" in removed["message"]
    assert refused["error_code"] == "SCALING_ERROR"
    assert "403" in refused["message"]

    cluster.scale(4)  # as somebody does with kubectl
    wait_until(lambda: cluster.replicas == 2)
    down = service.call("/api/v1/workers/scale", {"worker_count": 1})

    assert down["status"] == "success", down
    assert down["data"]["after"]["worker_count"] == cluster.replicas == 1


def test_manifests_fit_one_another() -> None:
    """The role allows what the driver does, and the names are those of the settings."""
    documents = [
        each
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    ]
    by_kind = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    worker = by_kind["Deployment", "celery-worker"]
    controller = by_kind["Deployment", "bridge-controller"]
    [container] = controller["spec"]["template"]["spec"]["containers"]
    environ = {each["name"]: each.get("value") for each in container["env"]}
    [rule] = by_kind["Role", "bridge-controller"]["rules"]
    scaled = by_kind["ScaledObject", "celery-worker"]["spec"]

    assert environ["FLEET_DRIVER"] == "kubernetes"
    # Kubernetes would set NATS_PORT to the URL of a Service called nats, which is no port.
    assert controller["spec"]["template"]["spec"]["enableServiceLinks"] is False
    assert environ["KUBERNETES_DEPLOYMENT"] == worker["metadata"]["name"]
    assert "replicas" not in worker["spec"]
    assert rule["resources"] == ["deployments/scale"]
    assert set(rule["verbs"]) == {"get", "patch"}
    assert rule["resourceNames"] == [scaled["scaleTargetRef"]["name"]] == ["celery-worker"]
    command = worker["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "general-worker-$(POD_NAME)@%h" in command
