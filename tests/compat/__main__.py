"""`make compat`: Celery's and kombu's own integration tests, on NATS and on Redis.

Run from the root of the repository as ``python -m tests.compat``. Nothing of the suites is kept in
the repository; they lie in the cache directory, as do the reports.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from tests.compat import outcomes
from tests.compat.excluded import EXCLUDED
from tests.compat.servers import RedisServer
from tests.compat.suites import EDITS, Suites, prepare
from tests.support.nats import NatsServer

_HERE = Path(__file__).resolve().parent
#: A test that hangs must not hang the run: Celery's own limit is 300 s a test.
_TEST_TIMEOUT_SECONDS = 300


@click.command()
@click.option("--only", default="", help="Parts of Celery's suite: tasks,canvas,inspect")
@click.option("--keyword", "-k", default="", help="Only tests that match, as pytest's -k.")
@click.option(
    "--pool", default="prefork", type=click.Choice(["prefork", "threads", "gevent", "solo"])
)
@click.option("--no-redis", is_flag=True, help="Leave the comparison out.")
@click.option("--no-kombu", is_flag=True, help="Leave kombu's suite out.")
@click.option("--cache-dir", default=".compat", type=click.Path(path_type=Path))
def compat(
    only: str, keyword: str, pool: str, no_redis: bool, no_kombu: bool, cache_dir: Path
) -> None:
    """Run the suites and compare. Ends with 1 where a test passes on Redis and fails on NATS."""
    cache = cache_dir.resolve()
    suites = prepare(cache)
    # In the order of a full run: some tests leave their mark on what follows.
    selection = [f"t/integration/test_{part}.py" for part in sorted(only.split(",")) if part]
    arguments = [*(selection or ["t/integration"]), *(["-k", keyword] if keyword else [])]
    shutil.rmtree(cache / "nats", ignore_errors=True)
    with ExitStack() as stack:
        nats = NatsServer(cache / "nats")
        nats.start()
        stack.callback(nats.stop)
        redis = stack.enter_context(RedisServer(cache / "redis", free_port()))
        runner = Runner(suites, cache, pool, redis)
        failed = [] if no_kombu or only else outcomes.failures(runner.kombu(nats.url))
        runs = {} if no_redis else {"Redis": runner.celery("redis", redis.url, arguments)}
        runs["NATS"] = runner.celery("nats", nats.url, arguments)
    report(runs)
    failed += outcomes.regressions(runs.get("Redis", {}), runs["NATS"])
    if no_redis:
        failed += outcomes.failures(runs["NATS"])
    if failed:
        click.echo("\nFailed on NATS" + ("" if no_redis else ", passed on Redis") + ":")
        click.echo("\n".join(failed))
        sys.exit(1)


class Runner:
    """Runs one suite in a process of its own."""

    def __init__(self, suites: Suites, cache: Path, pool: str, redis: RedisServer) -> None:
        self._suites = suites
        self._cache = cache
        self._pool = pool
        self._redis = redis

    def celery(self, name: str, url: str, arguments: list[str]) -> outcomes.Outcomes:
        """Run Celery's integration tests with broker and results at `url`."""
        environment = {
            "TEST_BROKER": url,
            "TEST_BACKEND": url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self._redis.port),
            "COMPAT_POOL": self._pool,
        }
        ignored = [f"--ignore=t/integration/{file}" for file in EXCLUDED if "::" not in file]
        # What a program that starts a worker by itself loads (ADR 0005).
        plugins = ["-p", "celery.contrib.pytest"]
        plugins += ["-p", "bridge.worker.plugin"] if name == "nats" else []
        return self._pytest(
            f"celery-{name}", self._suites.celery, environment, [*plugins, *ignored, *arguments]
        )

    def kombu(self, url: str) -> outcomes.Outcomes:
        """Run kombu's classes for any transport."""
        contract = str(_HERE / "kombu_contract.py")
        environment = {"COMPAT_NATS_URL": f"{url}/kombu", "PYTHONPATH": str(self._suites.kombu)}
        found = self._pytest(
            "kombu",
            self._suites.kombu,
            environment,
            ["-c", os.devnull, "--rootdir", ".", "--confcutdir", str(_HERE), contract],
        )
        click.echo(outcomes.table({"NATS": found}))
        click.echo(outcomes.totals("kombu on NATS", found))
        return found

    def _pytest(
        self, name: str, directory: Path, environment: dict[str, str], arguments: list[str]
    ) -> outcomes.Outcomes:
        junit = self._cache / f"{name}-{self._pool}.xml"
        junit.unlink(missing_ok=True)
        patched = ["-m", "gevent.monkey", "--module"] if self._pool == "gevent" else ["-m"]
        # Some tests start `celery` by its name.
        path = f"{self._suites.python.parent}{os.pathsep}{os.environ['PATH']}"
        # Its exit code says only that something failed, and what did stands in the report.
        subprocess.run(
            [
                str(self._suites.python),
                *(*patched, "pytest"),
                *("-p", "no:cacheprovider", "-q", "--timeout", str(_TEST_TIMEOUT_SECONDS)),
                *(f"--junitxml={junit}", *arguments),
            ],
            cwd=directory,
            env={**os.environ, "PATH": path, **environment},
            check=False,
        )
        if not junit.exists():
            raise click.ClickException(f"the {name} suite ended without a report: see above")
        return outcomes.read(junit)


def report(runs: dict[str, outcomes.Outcomes]) -> None:
    """Print what ran, what differs and what was left out."""
    click.echo(outcomes.table(runs))
    if len(runs) > 1:
        click.echo("\nDifferences:\n" + outcomes.table(runs, only_differences=True))
    click.echo("\nLeft out:")
    click.echo("\n".join(f"{test}: {reason}" for test, reason in EXCLUDED.items()))
    click.echo("\nChanged in the downloaded copy:")
    click.echo("\n".join(f"{edit.files}: {edit.reason}" for edit in EDITS))
    click.echo("")
    for name, found in runs.items():
        click.echo(outcomes.totals(f"Celery on {name}", found))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    compat()
