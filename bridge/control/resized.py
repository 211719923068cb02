"""What a resize came to."""

from __future__ import annotations

import msgspec


class Resized(msgspec.Struct, frozen=True, kw_only=True):
    """Slots of one worker's pool, before and after it was asked for `target` of them.

    `before` and `after` count what takes tasks. `pending_shrink` of the latter are above the
    target because they hold a task or have not started yet: they go by themselves once that is
    over, except in a worker without `pool_resize`, which must be asked again.
    """

    before: int
    after: int
    target: int
    pending_shrink: int
