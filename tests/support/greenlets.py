"""A program patched by gevent or eventlet that uses the wire."""

from __future__ import annotations

import subprocess
import sys

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore');"  # eventlet calls itself old
    "import eventlet; eventlet.monkey_patch(); warnings.simplefilter('error')",
}
GREEN_PROGRAM = """
import sys
import threading
import time
from bridge.errors import NatsConnectionError
from bridge.wire import Connection, ConnectionPool, ConnectOptions

options = ConnectOptions.from_url(sys.argv[1], tls_ca_file=sys.argv[2] or None)
pool = ConnectionPool(options)
answers = []

def ask():
    for _ in range(10):
        with pool.connection() as connection:
            answers.append(connection.request("$JS.API.INFO", b"", timeout=10).payload[:1])

greenlets = [threading.Thread(target=ask) for _ in range(20)]
for greenlet in greenlets:
    greenlet.start()
for greenlet in greenlets:
    greenlet.join()
assert answers == [b"{"] * 200

waiter = Connection(options)
waiter.connect()

# A PONG that lies unread is a sign of life, seen without a turn of the hub.
waiter.check_peer(0.0)
time.sleep(0.1)
for _ in range(20):
    waiter.check_peer(0.0)

# A greenlet that waits leaves the others their turn, and closing wakes it, as with threads.
turns = []
def close_after_some_turns():
    for turn in range(5):
        time.sleep(0.02)
        turns.append(turn)
    waiter.close()
threading.Thread(target=close_after_some_turns).start()
started = time.monotonic()
try:
    while True:
        waiter.drain()
except NatsConnectionError:
    assert len(turns) == 5, turns
    assert time.monotonic() - started < 1, "closing woke nobody"
pool.close()
print("green")
"""


def assert_works_green(library: str, url: str, ca_file: str = "") -> None:
    """Waiting gives way to other greenlets, and closing wakes who waits."""
    program = PATCHES[library] + GREEN_PROGRAM
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, url, ca_file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "green\n", "")
