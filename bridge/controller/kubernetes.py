"""Workers as the pods of a Deployment: Kubernetes starts and ends them, we say how many.

The pods run ``celery worker`` with a hostname that begins with ``<type>-worker-``, see
config/kubernetes. Their pools are resized through Celery's control API like all others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from bridge.control import Control
from bridge.controller.host import PERIOD_SECONDS, HostKeeper
from bridge.controller.shared import TARGET_KEY, FleetTarget
from bridge.controller.sizes import Sizes
from bridge.errors import ConfigError, NatsConnectionError, ScalingError
from bridge.fleet import MemberState, ProcessState, WorkerOptions
from bridge.logs import get_logger
from bridge.records import Snapshot, WorkerRecord
from bridge.scaling import Leader, NotLeading, Size
from bridge.stats import FleetView
from bridge.stats.pause import pause

_REQUEST_SECONDS: Final = 5.0

log = get_logger("bridge.controller")


class Deployment:
    """The number of replicas of one Deployment."""

    def __init__(self, api: Any, namespace: str, name: str) -> None:
        self.told = f"deployment {namespace}/{name}"
        self._api = api
        self._place = {"name": name, "namespace": namespace, "_request_timeout": _REQUEST_SECONDS}

    def replicas(self) -> int:
        """Return how many are wanted now. Raises ScalingError."""
        return int(self._call(self._api.read_namespaced_deployment_scale).spec.replicas or 0)

    def set_replicas(self, count: int) -> None:
        """Have `count` of them. Raises ScalingError."""
        body = {"spec": {"replicas": count}}
        self._call(self._api.patch_namespaced_deployment_scale, body=body)

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        from kubernetes.client import ApiException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            return method(**self._place, **arguments)
        except ApiException as error:
            raise ScalingError(
                f"Kubernetes refused to scale {self.told}: {error.status} {error.reason}. Check "
                "KUBERNETES_NAMESPACE, KUBERNETES_DEPLOYMENT and the role of the controller."
            ) from error
        except HTTPError as error:
            raise ScalingError(
                f"Kubernetes cannot be reached to scale {self.told}: {error}."
            ) from error


def deployment(namespace: str, name: str) -> Deployment:
    """Return a Deployment of the cluster this runs in, or else of the one in KUBECONFIG.

    Raises ConfigError.
    """
    try:
        from kubernetes import client, config  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "FLEET_DRIVER=kubernetes needs the Kubernetes client: pip install "
            "'celery-nats-bridge[kubernetes]'"
        ) from error
    try:
        config.load_config()
    except config.ConfigException as error:
        raise ConfigError(
            f"FLEET_DRIVER=kubernetes found no cluster ({error}): run the controller in a pod "
            "with a service account, or set KUBECONFIG"
        ) from error
    # Whoever waits for us decides about another try.
    settings = client.Configuration.get_default_copy()
    settings.retries = False
    return Deployment(client.AppsV1Api(client.ApiClient(settings)), namespace, name)


class Replicas:
    """Keeps the number of replicas, and the pools of the workers in them."""

    def __init__(
        self,
        leader: Leader,
        keeper: HostKeeper,
        options: WorkerOptions,
        control: Control,
        deployment: Deployment,
        *,
        workers: Callable[[], Awaitable[dict[str, WorkerRecord]]],
    ) -> None:
        """`workers` reads what live workers announce; it may raise NatsConnectionError."""
        self._leader = leader
        self._keeper = keeper
        self._options = options
        self._deployment = deployment
        self._workers = workers
        self._sizes = Sizes(control, options.pool, self._note_size)
        self._size: Size | None = None
        self._members: list[MemberState] = []
        #: hostname and pid -> size its pool was brought to
        self._resized: dict[tuple[str, int | None], int] = {}

    @property
    def wanted_ids(self) -> set[str]:
        """As many as wanted: which of them go or come is for Kubernetes to choose."""
        count = 0 if self._size is None else self._size.workers
        there = [member.hostname.partition("@")[0] for member in self._members][:count]
        return {*there, *(f"replica {number + 1}" for number in range(len(there), count))}

    def keeps_elsewhere(self, worker_id: str) -> bool:
        """Refuse: a pod is replaced by deleting it."""
        self._refuse(worker_id)
        return False

    def rid_of(self, worker_id: str) -> contextlib.AbstractContextManager[None]:
        """Refuse: Kubernetes chooses which pod goes."""
        self._refuse(worker_id)
        return contextlib.nullcontext()

    def _refuse(self, worker_id: str) -> None:
        if any(member.hostname.startswith(f"{worker_id}@") for member in self._members):
            raise ScalingError(
                f"{worker_id} is a pod: `kubectl delete pod` has it replaced, and "
                "POST /api/v1/workers/scale changes how many there are.",
                status=409,
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Correct what others changed, and the sizes of new pods' pools."""
        while not stop.is_set():
            if not self._leader.leads:
                self._size = None
            elif self._size is not None:
                try:
                    await self._turn(self._size)
                except (NatsConnectionError, ScalingError, NotLeading) as error:
                    log.warning("replicas not kept", reason=str(error))
            await pause(PERIOD_SECONDS, stop)
        await self._sizes.finish()

    async def _turn(self, size: Size) -> None:
        records = await self._workers()
        prefix = f"{self._options.worker_type}-worker-"
        self._members = [
            self._member(record)
            for hostname, record in sorted(records.items())
            if hostname.startswith(prefix)
        ]
        self._sizes.align(self._members, size.concurrency)
        found = await asyncio.to_thread(self._deployment.replicas)
        if found != size.workers and size == self._size:
            log.warning("replicas changed by others", found=found, wanted=size.workers)
            await self._set(size)

    async def apply(self, size: Size) -> None:
        """Make `size` the target. Raises NotLeading, NatsConnectionError, ScalingError."""
        await self._set(size)
        self._size = size

    async def _set(self, size: Size) -> None:
        # The server refuses it to whoever leads no more: then Kubernetes is not asked either.
        target = FleetTarget(concurrency=size.concurrency)
        await self._leader.put(TARGET_KEY, msgspec.json.encode(target))
        await asyncio.to_thread(self._deployment.set_replicas, size.workers)
        log.info("replicas set", deployment=self._deployment.told, replicas=size.workers)

    async def forget(self) -> None:
        """The pods stay: they need no controller."""

    def note(self, snapshot: Snapshot) -> None:
        """Nothing depends on how busy each is."""

    def view(self, max_concurrent: int) -> FleetView:
        return FleetView(
            worker_type=self._options.worker_type,
            concurrency=max_concurrent,
            target=0 if self._size is None else self._size.workers,
            members=self._members,
        )

    def _member(self, record: WorkerRecord) -> MemberState:
        known = self._resized.get((record.hostname, record.pid))
        return MemberState(
            hostname=record.hostname,
            state=ProcessState.RUNNING,
            pid=record.pid,
            restarts=0,
            last_error=None,
            started_epoch=record.started_epoch,
            slots=record.concurrency if known is None else known,
        )

    def _note_size(self, member: MemberState, slots: int) -> None:
        self._resized[member.hostname, member.pid] = slots
