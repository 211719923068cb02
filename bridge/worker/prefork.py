"""The size of a prefork pool: grows at once, shrinks only between tasks (ADR 0007)."""

from __future__ import annotations

import gc
import os
import pickle
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from celery import signals
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

#: What billiard's own warm shutdown writes to a child: it leaves once it has read all before.
#: Framed as AsynPool frames its jobs.
_FAREWELL_BODY: Final = pickle.dumps(None)
_FAREWELL: Final = struct.pack(">I", len(_FAREWELL_BODY)) + _FAREWELL_BODY
#: billiard takes more than 100 new children within a second for a crash loop, and closes the pool.
_GROW_STEP: Final = 50
_REAP_SECONDS: Final = 0.01
_READ_BYTES: Final = 65_536


class Slots(LaxBoundedSemaphore):
    """Celery's permits to hand a task to the pool, counted exactly through resizes.

    kombu's own counts a growth twice, and after a shrink passes each permit it should take
    back on to the next waiter. Tasks beyond the pool's size then sit in its buffer, where they
    cannot be revoked any more. Here `value` goes below zero: so many tasks have to end before
    the next one is let in.
    """

    def release(self) -> None:
        """Give one permit back, to the first waiter if there is one and no debt."""
        if self.value < 0:
            self.value += 1
        else:
            super().release()

    def grow(self, n: int = 1) -> None:
        """Add `n` permits."""
        self.initial_value += n
        for _ in range(n):
            self.release()

    def shrink(self, n: int = 1) -> None:
        """Take `n` permits away, those in use once they come back."""
        taken = min(n, self.initial_value)
        self.initial_value -= taken
        self.value -= taken

    def recount(self, used: int) -> None:
        """Say how many permits are in use, after releases that belonged to none."""
        self.value = self.initial_value - used
        while self.value > 0 and self._waiting:
            self.value -= 1
            waiter, args, kwargs = self._pop_waiter()
            waiter(*args, **kwargs)


class PreforkSize:
    """Keeps a prefork pool on an event loop at a wanted number of children.

    Not thread-safe: everything runs on the worker's event loop, as the pool itself does.
    """

    def __init__(self, task_pool: Any, hub: Any) -> None:
        self._task_pool = task_pool
        # Held, not looked up: after a lost connection kombu's current loop is None.
        self._hub = hub
        self._children: list[Any] = []
        self._leaving: set[Any] = set()
        self._reaping = False
        signals.worker_before_create_process.connect(self._empty_free_queues)

    @property
    def serving(self) -> int:
        """Children that take tasks: alive and not told to leave."""
        return sum(child not in self._leaving for child in self._task_pool._pool._pool)

    @property
    def pending_shrink(self) -> int:
        """Children above the wanted number that leave as soon as they hold no task."""
        return max(self.serving - int(self._task_pool.num_processes), 0)

    def resize(self, target: int) -> None:
        """Have `target` children: start the missing ones now, dismiss idle ones now."""
        pool = self._task_pool._pool
        missing = target - pool._processes
        if missing < 0:
            pool._processes = target
            pool._putlock.shrink(-missing)
        if missing > 0:
            with _collected_once():
                _grow(pool, missing)
        # Shown by `inspect stats`; Celery's own grow and shrink forget it.
        self._task_pool.limit = target
        self.settle()

    def settle(self) -> None:
        """Dismiss what is too much and now idle; account for children that have ended.

        Cheap: runs on every turn of the event loop.
        """
        pool = self._task_pool._pool
        if pool is None:
            return
        children = pool._pool
        if children != self._children:
            if gone := set(self._children).difference(children):
                self._leaving -= gone
                # billiard gave a permit back for each of them, whether it held one or not.
                pool._putlock.recount(sum(not job.ready() for job in pool._cache.values()))
            self._children = list(children)
        if len(children) > pool._processes and (excess := self.pending_shrink):
            for child in islice(_idle(pool), excess):
                self._dismiss(pool, child)
        if not self._reaping and any(child._sentinel_poll is None for child in children):
            self._reaping = True
            self._hub.call_later(_REAP_SECONDS, self._reap, pool)

    def _reap(self, pool: Any) -> None:
        """Look again for a child whose end was noticed a moment before it could be waited for.

        Its pipe closes first. Celery asks at that very moment, and then not for 5 s, in which
        the place of a recycled child stays empty.
        """
        self._reaping = False
        pool.maintain_pool()

    def _dismiss(self, pool: Any, child: Any) -> None:
        # The pipe of an idle child is empty, so these few bytes always fit, and whole.
        child.send_job_offset(memoryview(_FAREWELL), 0)
        pool._all_inqueues.discard(child.inqW_fd)
        pool.hub_remove(child.inqW_fd)
        self._leaving.add(child)

    @staticmethod
    def _empty_free_queues(sender: Any, **_: Any) -> None:
        """Before a child takes over the pipes of another: nothing meant for that one is left.

        A child that ends on its own accord (`max_tasks_per_child`) reads no farewell.
        """
        for (inqueue, *_others), owner in sender._queues.items():
            while owner is None and inqueue._reader.poll(0):
                os.read(inqueue._reader.fileno(), _READ_BYTES)


def _grow(pool: Any, missing: int) -> None:
    while missing > 0:
        step = min(missing, _GROW_STEP)
        pool.grow(step)
        pool.restart_state.R = 0
        pool.maintain_pool()
        missing -= step


@contextmanager
def _collected_once() -> Iterator[None]:
    """Collect garbage now, and let what is alive count as clean until the end.

    Celery collects before each fork, 40 ms every time in which the event loop stands still. The
    children keep the mark, so that their own collections leave the shared pages alone.
    """
    if gc.get_freeze_count():
        # The app has done so for good.
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _idle(pool: Any) -> Iterable[Any]:
    """The children that are up and hold no task, not even one in their pipe.

    A job is in the pool's cache from before it is written until its result has been read.
    """
    holding = {
        child
        for job in pool._cache.values()
        if not job.ready()
        for child in (job._write_to, job._scheduled_for)
    }
    busy = pool._busy_workers | pool._active_writes
    return [
        child
        for child in pool._pool
        if child.inqW_fd in pool._all_inqueues
        and child.inqW_fd not in busy
        and child not in holding
    ]
