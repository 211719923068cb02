"""A small stand-in for a Kubernetes cluster: its API over HTTP, and pods that are processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

_PATH = "/apis/apps/v1/namespaces/shop/deployments/celery-worker/scale"


class Cluster:
    """One Deployment `celery-worker` in namespace `shop`; `kubeconfig` leads a client to it.

    Each replica is a Celery worker on `nats_url`. With `forbidden` set, changes are answered as
    to somebody whose role does not allow them.
    """

    def __init__(self, directory: Path) -> None:
        self.nats_url = ""
        self.forbidden = False
        self.replicas = 0
        self.kubeconfig = directory / "kubeconfig"
        self._directory = directory
        self._pods: dict[int, subprocess.Popen[bytes]] = {}
        self._started = 0
        self._ended: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(200 if self.path == _PATH else 404)

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != _PATH or cluster.forbidden:
                    self._answer(403)
                    return
                cluster.scale(int(body["spec"]["replicas"]))
                self._answer(200)

            def _answer(self, status: int) -> None:
                scale = {
                    "apiVersion": "autoscaling/v1",
                    "kind": "Scale",
                    "metadata": {"name": "celery-worker", "namespace": "shop"},
                    "spec": {"replicas": cluster.replicas},
                    "status": {"replicas": len(cluster._pods), "selector": "app=celery-worker"},
                }
                text = json.dumps(scale if status == 200 else {"status": "Failure"}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def scale(self, count: int) -> None:
        """Have `count` pods; the youngest go first, as they do by default."""
        with self._lock:
            self.replicas = count
            while len(self._pods) > count:
                pod = self._pods.pop(max(self._pods))
                pod.terminate()
                self._ended.append(pod)
            while len(self._pods) < count:
                self._started += 1
                self._pods[self._started] = self._start(self._started)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        pod = f"celery-worker-{number}"
        with (self._directory / f"{pod}.log").open("wb") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tasks.app:app", "worker"),
                    *("--hostname", f"general-worker-{pod}@{pod}", "--concurrency", "1"),
                    "--task-events",
                ],
                env={
                    **os.environ,
                    "CELERY_BROKER_URL": self.nats_url,
                    "CELERY_RESULT_BACKEND": self.nats_url,
                },
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        self._thread.start()
        server = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": server}}],
                    "users": [{"name": "test", "user": {"token": "t"}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.scale(0)
        for pod in self._ended:
            try:
                pod.wait(10)
            except subprocess.TimeoutExpired:
                pod.kill()
                pod.wait()
