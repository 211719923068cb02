"""Celery's names as NATS tokens: legal, reversible, never two names for one token."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError
from bridge.names import DEFAULT_PRIORITY, Names, bucket_stream, bucket_subject, escape, unescape

LEGAL_TOKEN = re.compile(r"[A-Za-z0-9_=-]+")


@given(st.text())
def test_escaped_name_is_a_legal_token_and_comes_back(name: str) -> None:
    """Any name becomes one token that is legal everywhere, and is read back unchanged."""
    token = escape(name)

    assert LEGAL_TOKEN.fullmatch(token)
    assert unescape(token) == name


@given(st.text(), st.text())
def test_no_two_names_share_a_token(one: str, other: str) -> None:
    """Different names never meet on the wire."""
    assert (escape(one) == escape(other)) == (one == other)


@given(st.text("=2E.a", max_size=8))
def test_names_that_look_escaped_come_back(name: str) -> None:
    """A name that contains the escape character itself is no special case."""
    assert unescape(escape(name)) == name


def test_known_names_keep_their_form() -> None:
    """The wire format is stable: plain names stay readable, others look as documented."""
    assert escape("celery@host.celery.pidbox") == "celery=40host=2Ecelery=2Epidbox"
    assert escape("") == "="
    assert escape("é") == "=C3=A9"


@given(st.text(), st.integers(0, 9))
def test_queue_is_read_back_from_its_subject(queue: str, priority: int) -> None:
    """Whatever a queue is called, its subject has three tokens and tells the queue."""
    subject = Names().task_subject(queue, priority)

    assert subject.count(".") == 2
    assert Names().queue_of(subject) == queue
    assert subject.startswith(Names().queue_subjects(queue).removesuffix("*"))


@given(st.text(), st.text(), st.sampled_from(["", "/", "tenant", "a/b"]))
def test_routing_key_is_read_back_from_its_subject(exchange: str, key: str, vhost: str) -> None:
    """Routing keys survive the way over a subject, in any virtual host."""
    names = Names(vhost)

    assert names.routing_key_of(names.exchange_subject(exchange, key)) == key


@given(st.text(), st.text())
def test_schedules_are_found_by_queue_and_by_task(queue: str, task_id: str) -> None:
    """A schedule's subject lies under the filters that cancel it."""
    names = Names()
    subject = names.schedule_subject(queue, task_id, "n")

    assert subject.startswith(names.queue_schedules(queue).removesuffix(">"))
    _, _, task_token, _ = subject.split(".")
    assert names.task_schedules(task_id) == f"cs.*.{task_token}.*"


@pytest.mark.parametrize("vhost", ["", "/", "default", "/default"])
def test_default_virtual_host_has_no_prefix(vhost: str) -> None:
    """All spellings of the default virtual host are one."""
    names = Names(vhost)

    assert names.task_subject("q") == f"cq.q.{DEFAULT_PRIORITY}"
    assert (names.task_stream, names.bucket("tasks")) == ("CELERY_default", "celery_tasks")


def test_virtual_hosts_share_nothing() -> None:
    """Another virtual host has subjects, streams and buckets of its own."""
    names = Names("team/a")

    assert names.task_subject("q", 3) == "team=2Fa.cq.q.3"
    assert names.task_stream_subjects == ["team=2Fa.cq.>", "team=2Fa.cs.>"]
    assert names.event_stream == "CELERY_EVENTS_team_2Fa"
    assert names.bucket("tasks") == "celery_tasks_team_2Fa"


def test_bucket_layout_is_that_of_the_nats_clients() -> None:
    """Stream and subject of a bucket are where every NATS client looks for them."""
    assert bucket_stream("celery_tasks") == "KV_celery_tasks"
    assert bucket_subject("celery_tasks", "key") == "$KV.celery_tasks.key"


def test_consumer_names_its_queue_and_priority() -> None:
    """Consumers of one queue differ by priority, of two queues by the token."""
    assert Names().consumer("a.b", 7) == "a=2Eb-7"


@pytest.mark.parametrize("vhost", ["cq", "cs", "cx", "cd", "kv", "EVENTS_x", "DEAD_x"])
def test_a_virtual_host_cannot_take_the_names_of_another(vhost: str) -> None:
    """Subjects and streams of two virtual hosts never overlap."""
    with pytest.raises(ConfigError, match="choose another name"):
        Names(vhost)


@given(st.text(min_size=1), st.text(min_size=1))
def test_virtual_hosts_have_streams_and_buckets_of_their_own(one: str, other: str) -> None:
    """Different names give different streams and buckets, whatever characters they hold."""
    try:
        first, second = Names(one), Names(other)
    except ConfigError:
        return

    same = first.vhost == second.vhost

    assert (first.task_stream == second.task_stream) == same
    assert (first.bucket("results") == second.bucket("results")) == same
