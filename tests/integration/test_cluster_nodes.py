"""Nodes of a real three-node cluster die and come back under a real Celery worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from bridge.errors import NatsConnectionError
from bridge.names import Names, bucket_stream, escape
from bridge.transport.exchange import BindingTable
from bridge.wire import Bucket, JetStream, KeyExists, Message, PubAck
from tests.support.celery_client import close_app, make_app
from tests.support.celery_worker import CeleryWorker
from tests.support.inbox import Inbox
from tests.support.nats_cluster import NODES, REPLICAS, NatsCluster
from tests.support.recovery import (
    BACK_SECONDS,
    IN_FLIGHT,
    PATIENCE_SECONDS,
    Notebook,
    worker_on,
)
from tests.support.waiting import wait_until
from tests.support.wire import connected, read_until

NAMES = Names()
RESULTS = NAMES.bucket("results")
#: What NATS takes at most to elect a leader in place of one that died, and us to notice.
ELECTED_SECONDS = 9.0 + BACK_SECONDS

_RACES = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """A cluster that every test leaves whole."""
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextmanager
def client_of(cluster: NatsCluster, timeout: float) -> Iterator[Celery]:
    """A client of the foreign app whose requests take up to `timeout` seconds."""
    app = make_app(
        cluster.broker_url(),
        cluster.url,
        task_default_queue="foreign",
        broker_transport_options={"replicas": REPLICAS, "timeout": timeout},
        result_backend_transport_options={"replicas": REPLICAS},
    )
    try:
        yield app
    finally:
        close_app(app)


@pytest.fixture
def app(cluster: NatsCluster) -> Iterator[Celery]:
    """A client that has the time for an election."""
    with client_of(cluster, timeout=ELECTED_SECONDS) as app:
        yield app


@contextmanager
def worker_of(cluster: NatsCluster, directory: Path, first: str = "a") -> Iterator[CeleryWorker]:
    """A worker that knows all nodes and is connected to `first`."""
    environ = {
        "CELERY_BROKER_URL": cluster.broker_url(first),
        "CELERY_RESULT_BACKEND": cluster.url,
        "NATS_REPLICAS": str(REPLICAS),
    }
    with worker_on(cluster.url, directory, environ=environ) as worker:
        yield worker


@contextmanager
def sending(notebook: Notebook) -> Iterator[None]:
    """Send a task every 20 ms for the length of the block; none may be refused."""
    ended = threading.Event()
    failures: list[Exception] = []

    def send() -> None:
        number = 0
        try:
            while not ended.wait(0.02):
                number += 1
                notebook.send(f"s{number}")
        except OperationalError as error:
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert failures == []


def wait_for_more(notebook: Notebook) -> None:
    """Wait until tasks end that no worker can have held before."""
    started = len(notebook.lines)
    wait_until(lambda: len(notebook.lines) > started + 4 * IN_FLIGHT)


def test_node_of_the_worker_dies(cluster: NatsCluster, app: Celery, tmp_path: Path) -> None:
    """A worker consumes from another node at once, where that one leads; nothing is lost."""
    leader = cluster.meta_leader
    doomed = next(node for node in NODES if node != leader)
    notebook = Notebook(app, tmp_path / "ran")
    with worker_of(cluster, tmp_path, doomed) as worker:
        cluster.lead(leader)
        notebook.send_many(300, 0.02)
        notebook.wait_for("end t50")
        assert cluster.nodes_of(worker.pid) == {doomed}

        with cluster.without(doomed):
            died = time.monotonic()
            worker.wait_for_log("Connection to broker lost")
            wait_for_more(notebook)

            assert time.monotonic() - died < BACK_SECONDS
            notebook.assert_none_lost(IN_FLIGHT)
            worker.stop()


def test_leader_of_everything_dies(cluster: NatsCluster, app: Celery, tmp_path: Path) -> None:
    """A worker elsewhere keeps its connection, and works on when NATS has elected another."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_of(cluster, tmp_path) as worker:
        notebook.send("first").get(timeout=PATIENCE_SECONDS)
        cluster.lead("c")
        assert "c" not in cluster.nodes_of(worker.pid)
        with sending(notebook):
            notebook.wait_for("end s20")
            with cluster.without("c"):
                died = time.monotonic()
                wait_for_more(notebook)

                # Whose message was with the dead node waits for an answer as long as it may.
                assert time.monotonic() - died < ELECTED_SECONDS + BACK_SECONDS
        # The one that was being sent may have been stored before its sender was told to repeat it.
        notebook.assert_none_lost(IN_FLIGHT + 1)
        assert "Connection to broker lost" not in worker.output
        worker.stop()


def test_result_and_scheduled_tasks_outlive_their_leader(
    cluster: NatsCluster, app: Celery, tmp_path: Path
) -> None:
    """`get()` wakes with a result stored after an election; what falls due in it runs once."""
    notebook = Notebook(app, tmp_path / "ran")
    go_on = tmp_path / "go-on"
    with worker_of(cluster, tmp_path) as worker:
        held = app.send_task("foreign.hold", (str(notebook.file), str(go_on)))
        notebook.wait_for("start hold")
        cluster.lead("c")
        words = [f"due{seconds}" for seconds in range(2, 7)]
        due = [
            app.send_task("foreign.record", (str(notebook.file), word), countdown=int(word[3:]))
            for word in words
        ]
        answers: list[str] = []
        waiting = threading.Thread(
            target=lambda: answers.append(held.get(timeout=PATIENCE_SECONDS))
        )
        waiting.start()
        with cluster.without("c"):
            go_on.touch()
            waiting.join()
            for each in due:
                each.get(timeout=PATIENCE_SECONDS)

            assert answers == [f"hold by {worker.hostname}"]
        assert sorted(x for x in notebook.lines if x.startswith("start due")) == [
            f"start {word}" for word in words
        ]
        worker.stop()


def test_single_messages_are_got_through_an_election(cluster: NatsCluster) -> None:
    """`Queue.get()` waits for the next leader; a queue that is not there is told of at once."""
    options = {"replicas": REPLICAS, "timeout": ELECTED_SECONDS}
    with Connection(cluster.broker_url(), transport_options=options) as connection:
        queue = Queue("got", channel=connection.channel())
        queue.declare()
        connection.Producer().publish("kept", routing_key="got")
        cluster.lead("c")
        with cluster.without("c"):
            message = queue.get()

            assert message is not None
            assert message.payload == "kept"
            message.ack()
        asked = time.monotonic()
        with pytest.raises(NotFound):
            connection.channel().basic_get("nowhere")
        assert time.monotonic() - asked < 1.0


def test_rolling_restart(cluster: NatsCluster, app: Celery, tmp_path: Path) -> None:
    """Nodes are restarted one by one as operators do it: nothing is lost or restarted by hand."""
    notebook = Notebook(app, tmp_path / "ran")
    with worker_of(cluster, tmp_path) as worker:
        with sending(notebook):
            notebook.wait_for("end s20")
            for name in NODES:
                cluster.nodes[name].restart()
                cluster.wait_until_whole()
                wait_for_more(notebook)
        notebook.assert_none_lost(len(NODES) * (IN_FLIGHT + 1))
        worker.stop()


def test_majority_lost(cluster: NatsCluster, tmp_path: Path) -> None:
    """Senders get a clear error in time, and with a second node all goes on."""
    timeout = 2.0
    with client_of(cluster, timeout) as app, worker_of(cluster, tmp_path) as worker:
        notebook = Notebook(app, tmp_path / "ran")
        notebook.send("before").get(timeout=PATIENCE_SECONDS)
        with cluster.without("b", "c"):
            asked = time.monotonic()
            with pytest.raises(OperationalError, match="try again"):
                app.send_task("foreign.add", (1, 1), retry=False)
            assert time.monotonic() - asked < timeout + 1.0
            _assert_storing_waits(cluster)

            cluster.nodes["c"].start()
            cluster.wait_until_led()
            notebook.send("afterwards").get(timeout=PATIENCE_SECONDS)
        notebook.assert_none_lost(IN_FLIGHT)
        worker.stop()


def _assert_storing_waits(cluster: NatsCluster) -> None:
    """What meets its own first try, which no copy has taken yet, is told to try again as well."""
    with connected(cluster.url) as connection:
        bucket = Bucket(JetStream(connection, timeout=1.0), RESULTS)
        for _ in range(3):
            with pytest.raises(NatsConnectionError, match="try again"):
                bucket.create("on-its-way", b"")


def test_what_is_stored_is_found_at_every_node(cluster: NatsCluster) -> None:
    """A value that was stored is read, whichever copy of the stream answers."""
    with ExitStack() as opened:
        urls = [node.url for node in cluster.nodes.values()]
        streams = [JetStream(opened.enter_context(connected(url))) for url in urls]
        streams[0].ensure_topology(NAMES, REPLICAS)
        missed = 0
        for number in range(300):
            key = f"found{number}"
            Bucket(streams[0], RESULTS).put(key, b"value", ttl_seconds=60)
            missed += sum(Bucket(js, RESULTS).get(key) is None for js in streams)

        assert missed == 0


def test_result_of_which_no_word_came(cluster: NatsCluster, app: Celery) -> None:
    """`get()` returns a result although the node died that should have told of it."""
    stream = bucket_stream(RESULTS)
    result = app.AsyncResult("untold")
    assert result.state == "PENDING"
    with connected(cluster.url) as connection:
        js = JetStream(connection)
        config = js.api(f"STREAM.INFO.{stream}")["config"]
        answers: list[str] = []
        waiting = threading.Thread(
            target=lambda: answers.append(result.get(timeout=PATIENCE_SECONDS))
        )
        waiting.start()
        wait_until(lambda: app.backend.result_consumer.is_watching("untold"))
        # From now on no change of a result is told to anybody.
        js.api(f"STREAM.UPDATE.{stream}", {**config, "republish": None})
        app.backend.mark_as_done("untold", "told")
        waiting.join()
        js.api(f"STREAM.UPDATE.{stream}", config)

        assert answers == ["told"]


def test_one_of_many_creates_a_key(cluster: NatsCluster) -> None:
    """The others learn that it is there, though its copies are still on their way."""
    racers = 6

    def create(number: int) -> int:
        with connected(cluster.url) as connection:
            js = JetStream(connection, timeout=ELECTED_SECONDS)
            js.ensure_topology(NAMES, REPLICAS)
            bucket, won = Bucket(js, RESULTS), 0
            for key in range(_RACES):
                barrier.wait(PATIENCE_SECONDS)
                try:
                    bucket.create(f"race-{key}", str(number).encode())
                    won += 1
                except KeyExists:
                    assert bucket.get(f"race-{key}") is not None
            return won

    barrier = threading.Barrier(racers)
    with ThreadPoolExecutor(racers) as threads:
        assert sum(threads.map(create, range(racers))) == _RACES


def test_a_message_id_is_stored_once(cluster: NatsCluster) -> None:
    """Also where the second comes while the first is on its way to the copies."""
    with connected(cluster.url) as connection:
        js = JetStream(connection, timeout=ELECTED_SECONDS)
        js.ensure_topology(NAMES, REPLICAS)
        subject = Bucket(js, RESULTS).subject("once")
        for number in range(_RACES):
            twice = [(subject, b"", {"Nats-Msg-Id": f"id-{number}"})] * 2
            first, second = js.publish_many(twice)
            assert isinstance(first, PubAck)
            assert isinstance(second, PubAck)
            assert {first.duplicate, second.duplicate} == {False, True}


class Unheard:
    """Loses the word of what changes in a queue's bindings, as a route does that drops.

    To be made before the table is read.
    """

    def __init__(self, table: BindingTable, queue: Queue) -> None:
        self.heard: list[Message] = []
        self.lost: list[Message] = []
        self._key = escape(queue.name)
        self._hear = table._on_change
        table._on_change = self._pass  # type: ignore[method-assign]

    def _pass(self, message: Message) -> None:
        if self._key in message.subject:
            self.lost.append(message)
        else:
            self.heard.append(message)
            self._hear(message)


@contextmanager
def two_nodes(cluster: NatsCluster) -> Iterator[tuple[Connection, Connection]]:
    """Connections to two nodes; what the first binds, the second hears of."""
    options = {"replicas": REPLICAS, "timeout": ELECTED_SECONDS}
    with (
        Connection(cluster.broker_url("a"), transport_options=options) as binder,
        Connection(cluster.broker_url("b"), transport_options=options) as publisher,
    ):
        yield binder, publisher


@pytest.mark.parametrize("later", [False, True])
def test_a_binding_that_went_unheard_is_found(cluster: NatsCluster, later: bool) -> None:
    """A message goes to every queue bound before it, also where nobody was told of the binding.

    A later change that is heard of does not hide it.
    """
    exchange = Exchange(f"unheard-{later}", "topic")
    queues = [Queue(f"{exchange.name}-{number}", exchange, f"key.{number}") for number in range(3)]
    with two_nodes(cluster) as (binder, publisher):
        wire = publisher.connection.wire
        word = Unheard(publisher.connection.bindings, queues[1])
        producer = publisher.Producer(exchange=exchange)
        producer.publish("loads the table", routing_key="key.0")
        queues[0].bind(binder.default_channel).declare()
        read_until(wire, lambda: word.heard)
        queues[1].bind(binder.default_channel).declare()
        read_until(wire, lambda: word.lost)
        if later:
            queues[2].bind(binder.default_channel).declare()
            read_until(wire, lambda: len(word.heard) > 1)

        producer.publish("through", routing_key="key.1")

        assert Inbox(binder, queues[1]).take()[0].payload == "through"


def test_a_binding_is_made_again_whose_removal_went_unheard(cluster: NatsCluster) -> None:
    """Who declares a queue does not trust an old table that it is bound."""
    exchange = Exchange("unheard-removal", "topic")
    queue = Queue(exchange.name, exchange, "key")
    with two_nodes(cluster) as (remover, binder):
        word = Unheard(binder.connection.bindings, queue)
        queue.bind(binder.default_channel).declare()
        queue.bind(remover.default_channel).unbind_from(exchange, "key")
        read_until(binder.connection.wire, lambda: len(word.lost) == 2)

        queue.bind(binder.default_channel).declare()

        remover.Producer(exchange=exchange).publish("through", routing_key="key")
        assert Inbox(binder, queue).take()[0].payload == "through"
