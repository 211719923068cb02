"""Permits for tasks stay exact through any order of tasks and resizes."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bridge.worker.prefork import Slots


class SlotsUnderResizes(RuleBasedStateMachine):
    """A worker that takes tasks, ends them and is resized; tasks are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(2)
        self.size = 2
        self.let_in: list[int] = []
        self.running: list[int] = []
        self.next_task = 0

    def start(self, task: int) -> None:
        self.let_in.append(task)
        self.running.append(task)

    @rule()
    def task_comes(self) -> None:
        self.slots.acquire(self.start, self.next_task)
        self.next_task += 1

    @precondition(lambda self: self.running)
    @rule()
    def task_ends(self) -> None:
        self.running.pop()
        self.slots.release()

    @rule(n=st.integers(1, 5))
    def grow(self, n: int) -> None:
        self.size += n
        self.slots.grow(n)

    @rule(n=st.integers(1, 5))
    def shrink(self, n: int) -> None:
        self.size = max(self.size - n, 0)
        self.slots.shrink(n)

    @rule(stray=st.integers(0, 3))
    def children_leave(self, stray: int) -> None:
        """billiard gives a permit back for each child that left, whether it held one or not."""
        for _ in range(stray):
            self.slots.release()
        self.slots.recount(len(self.running))

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        waiting = self.next_task - len(self.let_in)
        assert waiting == 0 or len(self.running) >= self.size

    @invariant()
    def what_is_free_is_counted(self) -> None:
        assert self.slots.value == self.size - len(self.running)

    @invariant()
    def tasks_start_in_order(self) -> None:
        assert self.let_in == sorted(self.let_in)


TestSlotsUnderResizes = SlotsUnderResizes.TestCase
TestSlotsUnderResizes.__doc__ = "Free slots are counted exactly, and no task waits beside one."


def test_growing_a_busy_pool_lets_in_no_more_than_its_size() -> None:
    """With 4 of 4 slots busy, one more slot starts one waiting task and leaves none free."""
    slots, started = Slots(4), []
    for task in range(7):
        slots.acquire(started.append, task)

    slots.grow(1)

    assert started == [0, 1, 2, 3, 4]
    assert slots.value == 0


def test_shrinking_a_busy_pool_starts_nothing_until_enough_has_ended() -> None:
    """From 4 busy slots to 1: three ends start nothing, the fourth starts the next."""
    slots, started = Slots(4), []
    for task in range(6):
        slots.acquire(started.append, task)

    slots.shrink(3)
    for _ in range(3):
        slots.release()
    assert started == [0, 1, 2, 3]

    slots.release()
    assert started == [0, 1, 2, 3, 4]
