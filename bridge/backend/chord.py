"""Celery's side of chords: collects the header's outcomes and sends the callback, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from celery import maybe_signature, states
from celery.backends.base import BaseKeyValueStoreBackend
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result
from celery.utils.functional import _regen
from kombu.utils.encoding import str_to_bytes

from bridge.backend.chord_record import ChordRecord, PartsExpired, new_holder
from bridge.names import Names
from bridge.wire import Bucket, JetStream

logger = logging.getLogger("nats")

T = TypeVar("T")


class ChordBackend(BaseKeyValueStoreBackend):
    """Chords for a backend that has NATS: what `NatsBackend` inherits."""

    _names: Names

    def _with_bucket(self, work: Callable[[Bucket, JetStream], T]) -> T:
        raise NotImplementedError

    def _chord(self, group_id: str, work: Callable[[ChordRecord], T]) -> T:
        """Run `work`, again when NATS was away."""
        ttl = self.chord_expires or None
        return self._with_bucket(lambda _, js: work(ChordRecord(js, self._names, group_id, ttl)))

    # -- the sender --------------------------------------------------------------------

    def apply_chord(self, header_result_args: tuple[Any, ...], *_: Any, **__: Any) -> None:
        """Prepare for a header that is about to be sent."""
        self._chord(header_result_args[0], ChordRecord.reset)
        if isinstance(header_result_args[1], _regen):
            return
        header_result = self.app.GroupResult(*header_result_args)
        if any(isinstance(result, GroupResult) for result in header_result.results):
            # Groups within the header: the callback is to get its results nested the same way.
            key = self._key(self.get_key_for_group(header_result.id))
            value = self.encode({"result": header_result.as_tuple()})
            ttl = self._chord_result_expires or None
            self._with_bucket(lambda bucket, _: bucket.put(key, str_to_bytes(value), ttl))

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        self._chord(group_id, lambda chord: chord.set_size(chord_size))

    def add_to_chord(self, group_id: str, result: Any) -> None:
        self._chord(group_id, lambda chord: chord.add(result.id))

    # -- the parts ---------------------------------------------------------------------

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Keep the outcome of one header task; the last one sends the callback."""
        task_id, group_id = request.id, request.group
        if not group_id or not task_id:
            return
        part = ChordRecord.part(task_id, request.group_index)
        outcome = self.encode([1, task_id, state, self.encode_result(result, state)])
        counted = self._chord(group_id, lambda chord: chord.store(part, str_to_bytes(outcome)))
        if counted < 0:
            return
        holder = new_holder(part)
        try:
            claim = self._chord(group_id, lambda chord: chord.claim(holder, counted))
        except PartsExpired as error:
            self._fail_expired(request, error)
            return
        if claim is not None:
            self._complete(request, holder, claim)

    def _fail_expired(self, request: Any, error: PartsExpired) -> None:
        failure = ChordError(
            f"Join error: {error}: set result_chord_expires above the time the header takes"
        )
        logger.error("chord %s raised: %r", request.group, failure)
        self.chord_error_from_stack(maybe_signature(request.chord, app=self.app), failure)
        self._chord(request.group, ChordRecord.reset)

    def _complete(self, request: Any, holder: str, claim: int) -> None:
        group_id = request.group
        callback = maybe_signature(request.chord, app=self.app)
        try:
            results = self._header_results(group_id)
            claim = self._renew(group_id, holder, claim)
            self._send_callback(callback, results)
        except _ClaimLost:
            logger.warning("chord %s: another worker sends its callback", group_id)
            return
        except ChordError as error:
            logger.exception("chord %s raised: %r", group_id, error)
            self.chord_error_from_stack(callback, error)
        except Exception as error:
            # Whatever it is, who waits for the chord must learn of it.
            logger.exception("chord %s raised: %r", group_id, error)
            self.chord_error_from_stack(callback, ChordError(f"Join error: {error!r}"))
        self._chord(group_id, lambda chord: chord.finish(claim))

    def _renew(self, group_id: str, holder: str, claim: int) -> int:
        renewed = self._chord(group_id, lambda chord: chord.renew(holder, claim))
        if renewed is None:
            raise _ClaimLost
        return renewed

    def _header_results(self, group_id: str) -> list[Any]:
        """Return what the callback gets. Raises ChordError where a part failed."""
        nested = GroupResult.restore(group_id, app=self.app)
        if nested is not None:
            # All parts are in: without this mark, joining would wait for the group itself.
            nested.on_ready()
            with allow_join_result():
                joined: list[Any] = nested.join_native(
                    timeout=self.app.conf.result_chord_join_timeout, propagate=True
                )
            return joined
        outcomes = self._chord(group_id, ChordRecord.values)
        return [self._result_of(outcome) for outcome in outcomes]

    def _result_of(self, outcome: bytes) -> Any:
        _, task_id, state, result = self.decode(outcome)
        if state in states.EXCEPTION_STATES:
            result = self.exception_to_python(result)
        if state in states.PROPAGATE_STATES:
            raise ChordError(f"Dependency {task_id} raised {result!r}") from result
        return result

    def _send_callback(self, callback: Any, results: list[Any]) -> None:
        try:
            self.app.amqp._retry_publish(callback.delay, results)
        except Exception as error:
            raise ChordError(f"Callback error: {error!r}") from error


class _ClaimLost(Exception):
    pass
