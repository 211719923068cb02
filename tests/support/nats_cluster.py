"""Three real nats-servers that are one JetStream cluster, for tests that take nodes away."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil

from bridge.errors import NatsConnectionError
from bridge.wire import Connection, ConnectOptions, JetStream
from bridge.wire.jetstream import JetStreamError
from tests.support.nats import NatsServer
from tests.support.service import free_ports

NODES = ("a", "b", "c")
REPLICAS = len(NODES)
_META_LEADER = re.compile(r"\] (\S+ \S+) .*cluster new metadata leader: (\w)/")
#: An election takes 4 to 9 s (raft in nats-server); this is for two in a row.
ELECTION_SECONDS = 30.0


class NatsCluster:
    """Nodes `a`, `b` and `c`, each with a store of its own below `directory`.

    The servers in `nodes` can be killed, frozen and restarted one by one. `lead` says which one
    of them leads, and `meta_leader` tells it of the cluster as a whole.
    """

    def __init__(self, directory: Path) -> None:
        routes = dict(zip(NODES, free_ports(len(NODES)), strict=True))
        self.nodes = {
            name: NatsServer(directory / name, extra=_clustered(name, routes)) for name in NODES
        }
        self._scratch = itertools.count()

    @property
    def url(self) -> str:
        """All nodes in one URL, as a backend takes it."""
        return "nats://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())

    def broker_url(self, first: str = "a") -> str:
        """Return all nodes as kombu takes them, to be tried from `first` on."""
        return ";".join(self.nodes[name].url for name in sorted(NODES, key=lambda n: n != first))

    def start(self) -> None:
        """Start all nodes; return once they take a stream of three copies."""
        for node in self.nodes.values():
            node.start()
        self.wait_until_whole()

    def close(self) -> None:
        """Take the power away; nobody reads these stores again."""
        for node in self.nodes.values():
            node.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_until_whole(self) -> None:
        """Wait until every node runs and keeps up with the leaders of all streams."""
        self._await(self._is_whole)

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """Kill nodes (SIGKILL) for the length of the block; afterwards the cluster is whole."""
        for name in names:
            self.nodes[name].kill()
        try:
            yield
        finally:
            for name in names:
                self.nodes[name].restart()
            self.wait_until_whole()

    def wait_until_led(self) -> None:
        """Wait until the cluster as a whole, every stream and every consumer has a leader."""
        self._await(self._is_led)

    def lead(self, node: str) -> None:
        """Have one node lead every stream and every consumer; return once it does."""
        self._await(lambda: not self._led_by_others(node))

    def _led_by_others(self, node: str) -> int:
        """Ask each other leader to hand over; return how many there were."""
        placement = {"placement": {"preferred": node}}
        others = 0
        for stream in self._streams():
            name = stream["config"]["name"]
            groups = {
                f"STREAM.LEADER.STEPDOWN.{name}": stream["cluster"],
                **{
                    f"CONSUMER.LEADER.STEPDOWN.{name}.{consumer['name']}": consumer["cluster"]
                    for consumer in self._consumers(stream)
                },
            }
            for endpoint, cluster in groups.items():
                if cluster.get("leader") != node:
                    others += 1
                    self._api(endpoint, placement)
        return others

    @property
    def meta_leader(self) -> str:
        """The node that leads the cluster as a whole, which creates streams and consumers."""
        said = [
            (found[1], found[2])
            for node in self.nodes.values()
            for line in list(node.log)
            if (found := _META_LEADER.search(line))
        ]
        return max(said)[1]

    def nodes_of(self, pid: int) -> set[str]:
        """Return the nodes that a process has connections to."""
        ports = {
            connection.raddr.port
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.raddr and connection.status == psutil.CONN_ESTABLISHED
        }
        return {name for name, node in self.nodes.items() if node.port in ports}

    def _is_led(self) -> bool:
        self._api("INFO")  # which only who leads the whole answers
        streams = self._streams()
        consumers = [consumer for stream in streams for consumer in self._consumers(stream)]
        return all(each["cluster"].get("leader") for each in [*streams, *consumers])

    def _is_whole(self) -> bool:
        """A stream can be made on every node, and every copy of each is up to date."""
        name = f"SCRATCH{next(self._scratch)}"
        config = {"name": name, "subjects": [name], "num_replicas": REPLICAS}
        self._api(f"STREAM.CREATE.{name}", config)
        self._api(f"STREAM.DELETE.{name}")
        return self._is_led() and all(
            copy["current"]
            for stream in self._streams()
            for copy in stream["cluster"].get("replicas", ())
        )

    def _streams(self) -> list[dict[str, Any]]:
        return self._api("STREAM.LIST")["streams"] or []

    def _consumers(self, stream: dict[str, Any]) -> list[dict[str, Any]]:
        return self._api(f"CONSUMER.LIST.{stream['config']['name']}")["consumers"] or []

    def _await(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that the cluster refuses to tell while it elects."""
        deadline = time.monotonic() + ELECTION_SECONDS
        reason: object = None
        while time.monotonic() < deadline:
            try:
                if condition():
                    return
                reason = "not yet"
            except (NatsConnectionError, JetStreamError) as error:
                reason = error
            time.sleep(0.1)
        raise AssertionError(f"the cluster did not become ready: {reason}")

    def _api(self, endpoint: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        options = ConnectOptions.from_url(self.url)
        connection = Connection(options)
        connection.connect()
        try:
            return JetStream(connection).api(endpoint, body)
        finally:
            connection.close()


def _clustered(name: str, routes: dict[str, int]) -> str:
    """Return the configuration of one node; `routes` are the ports between the nodes."""
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes.values())
    return (
        f'server_name: "{name}"\n'
        "cluster {\n"
        '  name: "test"\n'
        f"  listen: 127.0.0.1:{routes[name]}\n"
        f"  routes: [{others}]\n"
        "}\n"
    )
