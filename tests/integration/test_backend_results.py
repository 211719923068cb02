"""The result backend as Celery uses it: states stored, found, expired, and waiters woken."""

from __future__ import annotations

import copy
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import EncodeError

from bridge.errors import NatsConnectionError
from bridge.wire import Bucket
from bridge.wire.kv import Entry
from tests.support.nats import NatsServer
from tests.support.waiting import wait_until

MakeApp = Callable[..., Celery]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Celery apps whose results are in a server; closed in the end."""
    apps: list[Celery] = []

    def make(server: NatsServer, **settings: Any) -> Celery:
        app = Celery(
            "results",
            broker=server.url,
            backend=server.url,
            # One backend for all threads, not one for each: that is what is hard.
            config_source={"result_backend_thread_safe": True, **settings},
            set_as_current=False,
        )
        # Celery makes one for each thread that asks at the same time for the first time.
        assert app.backend
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.backend.close()
        app.close()


@pytest.fixture
def app(make_app: MakeApp, shared_nats: NatsServer) -> Celery:
    return make_app(shared_nats)


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def start_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_success_is_found_again(app: Celery, make_app: MakeApp, shared_nats: NatsServer) -> None:
    """Another process sees state, value, time and what Celery tells of the task."""
    task_id = "with space.and/odd=ü*>"
    request = SimpleNamespace(task="tasks.add", hostname="w@h", retries=2, started_epoch=5.0)
    app.backend.store_result(task_id, {"n": [1, None, "ü"]}, states.SUCCESS, request=request)

    found = AsyncResult(task_id, app=make_app(shared_nats))

    assert found.state == "SUCCESS"
    assert found.result == {"n": [1, None, "ü"]}
    assert found.date_done is not None
    assert (found.name, found.worker, found.retries) == ("tasks.add", "w@h", 2)
    meta = app.backend.get_task_meta(task_id)
    assert meta["started_epoch"] == 5.0
    assert meta["finished_epoch"] == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_compressed_results(
    make_app: MakeApp, shared_nats: NatsServer, task_id: str, serializer: str
) -> None:
    """`result_compression` works as on Redis, and a reader needs no such setting."""
    settings = {"result_serializer": serializer, "result_accept_content": [serializer]}
    app = make_app(shared_nats, result_compression="zlib", **settings)
    reader = make_app(shared_nats, **settings)
    waiter = ThreadPoolExecutor(1)
    woken = waiter.submit(reader.AsyncResult(task_id).get, timeout=10)
    app.backend.store_result(task_id, None, states.STARTED)
    app.backend.store_result(task_id, "x" * 10_000, states.SUCCESS)

    assert woken.result() == "x" * 10_000
    waiter.shutdown()
    stored = app.backend.get(app.backend.get_key_for_task(task_id))
    assert stored is not None
    assert len(stored) < 1000
    assert reader.AsyncResult(task_id).result == "x" * 10_000


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))],
    ids=["copy", "pickle"],
)
def test_copied_result_asks_the_same_server(
    app: Celery, task_id: str, copied: Callable[[AsyncResult], AsyncResult]
) -> None:
    """It carries its backend with it, as when it is handed to another process."""
    app.backend.store_result(task_id, "there", states.SUCCESS)
    app.backend.expires = 60

    result = copied(app.AsyncResult(task_id))
    try:
        assert result.get(timeout=5) == "there"
        assert result.backend.expires == 60
    finally:
        result.backend.close()


def test_failure_is_raised_again(app: Celery, task_id: str) -> None:
    """With its type, message and traceback."""
    app.backend.mark_as_failure(task_id, KeyError("missing"), traceback="Traceback: here")

    result = app.AsyncResult(task_id)

    assert result.state == "FAILURE"
    assert result.traceback == "Traceback: here"
    with pytest.raises(KeyError, match="missing"):
        result.get(timeout=5)


def test_unknown_task_is_pending(app: Celery, task_id: str) -> None:
    """Celery's word for what it knows nothing of."""
    result = app.AsyncResult(task_id)

    assert result.state == "PENDING"
    assert result.result is None


def test_states_follow_one_another(app: Celery, task_id: str) -> None:
    """Each replaces the one before, also a state of the task's own."""
    for state, value in [
        ("STARTED", {"pid": 1}),
        ("PROGRESS", {"current": 1}),
        ("RETRY", ValueError("again")),
        ("STARTED", {"pid": 2}),
        ("SUCCESS", 42),
    ]:
        app.backend.store_result(task_id, value, state)
        assert app.AsyncResult(task_id).state == state

    assert app.AsyncResult(task_id).result == 42


@pytest.mark.parametrize("late", ["STARTED", "FAILURE", "RETRY", "REVOKED"])
def test_success_is_final(app: Celery, task_id: str, late: str) -> None:
    """A late report of a worker that was given up does not undo it."""
    app.backend.store_result(task_id, "done", states.SUCCESS)
    app.backend.store_result(task_id, None if late == "STARTED" else RuntimeError("late"), late)

    assert app.AsyncResult(task_id).result == "done"


def test_success_is_final_also_in_the_last_moment(
    app: Celery, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is retried at once may end before its RETRY is stored; `get` would hang."""
    app.backend.store_result(task_id, None, states.STARTED)
    look = Bucket.entries

    def overtaken(bucket: Bucket, keys: Iterable[str]) -> list[Entry | None]:
        found = look(bucket, keys)
        monkeypatch.undo()
        app.backend.store_result(task_id, "done", states.SUCCESS)
        return found

    monkeypatch.setattr(Bucket, "entries", overtaken)
    app.backend.store_result(task_id, RuntimeError("again"), states.RETRY)

    assert app.AsyncResult(task_id).result == "done"


@pytest.mark.parametrize("size", [1, 9 * 1024 * 1024], ids=["", "cut"])
def test_retry_comes_before_what_it_leads_to(app: Celery, task_id: str, size: int) -> None:
    """Also where it is stored after that: the next try's failure is the last word."""

    def store(state: str, retries: int, text: str = "") -> None:
        request = SimpleNamespace(retries=retries)
        app.backend.store_result(task_id, RuntimeError(text), state, request=request)

    store(states.RETRY, 0)
    store(states.FAILURE, 1, "x" * size)
    store(states.RETRY, 0)
    assert app.AsyncResult(task_id).state == states.FAILURE

    store(states.RETRY, 1)
    assert app.AsyncResult(task_id).state == states.RETRY


def test_forgotten_result_is_gone(app: Celery, task_id: str) -> None:
    """`forget` leaves nothing behind, and the id may get a result again."""
    app.backend.store_result(task_id, 1, states.SUCCESS)
    result = app.AsyncResult(task_id)

    result.forget()

    assert app.AsyncResult(task_id).state == "PENDING"
    app.backend.store_result(task_id, RuntimeError("x"), states.FAILURE)
    assert app.AsyncResult(task_id).state == "FAILURE"


def test_results_expire(make_app: MakeApp, shared_nats: NatsServer, task_id: str) -> None:
    """The server drops them after `result_expires`, and nobody has to clean up."""
    app = make_app(shared_nats, result_expires=1)
    app.backend.store_result(task_id, 1, states.SUCCESS)
    assert app.AsyncResult(task_id).state == "SUCCESS"

    wait_until(lambda: app.AsyncResult(task_id).state == "PENDING")


def test_result_too_large_says_so(app: Celery, task_id: str) -> None:
    """An error with both sizes, and nothing is stored."""
    with pytest.raises(EncodeError, match=r"too large.*max_payload"):
        app.backend.store_result(task_id, "x" * 9_000_000, states.SUCCESS)

    assert app.AsyncResult(task_id).state == "PENDING"


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_failure_too_large_is_cut(
    make_app: MakeApp, shared_nats: NatsServer, task_id: str, serializer: str
) -> None:
    """The failure itself must not get lost over the length of its text."""
    settings = {"result_serializer": serializer, "result_accept_content": [serializer]}
    app = make_app(shared_nats, **settings)
    app.backend.mark_as_failure(
        task_id, ValueError("y" * 9_000_000), traceback="t" * 9_000_000 + "the end"
    )

    result = app.AsyncResult(task_id)

    assert result.state == "FAILURE"
    assert isinstance(result.result, ValueError)
    assert str(result.result).startswith("yyy")
    assert len(str(result.result)) < 20_000
    assert result.traceback.endswith("the end")


def test_storing_waits_for_a_server_that_is_away(
    make_app: MakeApp, nats_server: NatsServer, task_id: str
) -> None:
    """A finished task's result is not lost over a restart of the server."""
    app = make_app(nats_server)
    assert app.AsyncResult(task_id).state == "PENDING"
    nats_server.kill()
    storing = start_thread(lambda: app.backend.store_result(task_id, "kept", states.SUCCESS))

    nats_server.start()
    storing.join(30)

    assert app.AsyncResult(task_id).get(timeout=5) == "kept"


def test_removed_bucket_is_made_again(
    make_app: MakeApp, nats_server: NatsServer, task_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What was in it is gone; what is stored from now on is not, and the log tells why it took."""
    app = make_app(nats_server)
    app.backend.store_result(task_id, "gone", states.SUCCESS)
    app.backend._with_bucket(lambda bucket, js: js.api(f"STREAM.DELETE.{bucket.stream}"))

    app.backend.store_result(task_id, "kept", states.SUCCESS)

    assert app.AsyncResult(task_id).get(timeout=5) == "kept"
    assert "results wait up to 60 s: nobody answers" in caplog.text


def test_storing_gives_up_in_the_end(make_app: MakeApp, nats_server: NatsServer) -> None:
    """A server that stays away is told as a connection error."""
    app = make_app(nats_server)
    app.backend.retry_policy = {**app.backend.retry_policy, "max_retries": 2}
    nats_server.kill()

    with pytest.raises(NatsConnectionError):
        app.backend.get("key")


def test_how_long_results_wait_is_a_setting(make_app: MakeApp, nats_server: NatsServer) -> None:
    """Redis's: a web request, for one, should not wait a minute for a server that is away."""
    policy = {"timeout": 0.5, "interval_max": 0.2}
    app = make_app(nats_server, result_backend_transport_options={"retry_policy": policy})
    nats_server.kill()
    started = time.monotonic()

    with pytest.raises(NatsConnectionError):
        _ = app.AsyncResult("any").state

    assert time.monotonic() - started < 10


def test_many_results_are_read_in_one_go(app: Celery, task_id: str) -> None:
    """A group of hundreds joins, those that are missing told as pending."""
    names = [f"{task_id}-{number}" for number in range(300)]
    for number, name in enumerate(names[:-1]):
        app.backend.store_result(name, number, states.SUCCESS)
    group = GroupResult(task_id, [app.AsyncResult(name) for name in names], app=app)

    assert group.completed_count() == 299
    app.backend.store_result(names[-1], 299, states.SUCCESS)
    assert group.join_native(timeout=10) == list(range(300))
    assert app.backend.mget([]) == []


def test_groups_are_kept_and_deleted(app: Celery, task_id: str) -> None:
    """A saved group is restored by its id until it is deleted."""
    group = GroupResult(task_id, [app.AsyncResult(f"{task_id}-{n}") for n in range(3)], app=app)
    group.save()

    restored = GroupResult.restore(task_id, app=app)
    assert [child.id for child in restored.children] == [child.id for child in group.children]

    group.delete()
    assert GroupResult.restore(task_id, app=app) is None


def test_url_is_shown_without_its_password(make_app: MakeApp) -> None:
    """What lands in logs and reports holds no secret."""
    app = Celery("masked", backend="nats://me:secret@127.0.0.1:1/vhost", set_as_current=False)

    assert "secret" not in app.backend.as_uri()
    assert "secret" in app.backend.as_uri(include_password=True)
    app.close()
