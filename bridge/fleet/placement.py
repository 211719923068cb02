"""Which worker numbers run on which host. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import count as counting


def place(
    count: int,
    hosts: Collection[str],
    placed: Mapping[str, Collection[int]],
    *,
    busy: Mapping[int, int] | None = None,
    taken: Collection[int] = (),
    unwanted: Collection[int] = (),
) -> dict[str, list[int]]:
    """Split `count` workers evenly over `hosts`, moving as few as possible.

    A number belongs to one host only. Of those that go, `unwanted` ones go first, then the
    least `busy` (tasks by number), then the highest. Numbers in `taken` are not given to
    anyone anew: whoever has them is still on the way out.
    """
    shares = _shares(count, hosts, placed)
    loads = busy or {}
    kept = {
        host: sorted(placed.get(host, ()), key=lambda n: (n in unwanted, -loads.get(n, 0), n))[
            : shares[host]
        ]
        for host in shares
    }
    numbers = _free({n for own in kept.values() for n in own} | {*taken, *unwanted})
    return {
        host: sorted([*own, *(next(numbers) for _ in range(shares[host] - len(own)))])
        for host, own in kept.items()
    }


def _shares(
    count: int, hosts: Collection[str], placed: Mapping[str, Collection[int]]
) -> dict[str, int]:
    """Return how many each host gets; the odd ones stay where most are already."""
    if not hosts:
        return {}
    each, odd = divmod(count, len(hosts))
    ordered = sorted(hosts, key=lambda host: (-len(placed.get(host, ())), host))
    return {host: each + (index < odd) for index, host in enumerate(ordered)}


def _free(used: Collection[int]) -> Iterator[int]:
    return (number for number in counting(1) if number not in used)
