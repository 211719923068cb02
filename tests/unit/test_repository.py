"""The repository keeps its own promises: pins, documents, decisions, make targets."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config.schema import FIELDS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROOMS = ("bridge", "config", "tasks", "web", "tests")
CODE = [path for room in ROOMS for path in ROOT.glob(f"{room}/**/*.py")]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]


def pins(name: str) -> dict[str, str]:
    """Package and version of each line of a requirements file, in a canonical spelling."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith(("#", "-r ")):
            continue
        package, release = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line).groups()  # type: ignore[union-attr]
        found[canonicalize_name(package)] = release
    return found


def needed(requirement: Requirement) -> set[str]:
    """Canonical names of what an installed package needs in turn."""
    extras = [*requirement.extras, ""]
    deeper = map(Requirement, distribution(requirement.name).requires or [])
    return {
        canonicalize_name(inner.name)
        for inner in deeper
        if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras)
    }


def test_production_pins_are_complete() -> None:
    """Every dependency of the service, and all these need, is pinned for production."""
    direct = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["service"]]
    pinned = pins("requirements.txt")

    for requirement in [*map(Requirement, direct), *map(Requirement, pinned)]:
        assert canonicalize_name(requirement.name) in pinned
        assert needed(requirement) <= set(pinned), requirement


def test_production_pins_meet_the_declared_ranges() -> None:
    """What is pinned is what pyproject.toml allows."""
    pinned = pins("requirements.txt")

    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["service"]]:
        requirement = Requirement(line)
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_production_pins_hold_no_development_package() -> None:
    """What the service needs to run is apart from what tests need."""
    production, development = pins("requirements.txt"), pins("requirements-dev.txt")

    assert {"pytest", "mypy", "ruff"} <= set(development)
    assert not set(production) & set(development)


def test_development_pins_are_complete() -> None:
    """What development packages need is pinned as well."""
    both = pins("requirements.txt") | pins("requirements-dev.txt")

    for package in pins("requirements-dev.txt"):
        assert needed(Requirement(package)) <= set(both), package


def test_pins_are_what_the_tests_run_with() -> None:
    """The installed releases are the pinned ones."""
    for package, release in (pins("requirements.txt") | pins("requirements-dev.txt")).items():
        assert version(package) == release, package


def test_configuration_document_tells_every_setting() -> None:
    """docs/configuration.md has the key, variable, default and limits of each setting."""
    text = (ROOT / "docs" / "configuration.md").read_text()

    for field in FIELDS:
        default = str(field.default)
        default = default.lower() if isinstance(field.default, bool) else default
        shown = f"`{default}`" if default else ""
        allowed = field.allowed
        if allowed.startswith("text like "):
            allowed = f"`{allowed.removeprefix('text like ')}`".replace("|", "\\|")
        assert f"\n| `{field.key}` | `{field.env}` | {shown} | {allowed} | " in text
    assert text.count("\n| `") == len(FIELDS) + len(
        ("file", "format", "celery", "deliveries", "data")
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_of_a_document_lead_somewhere(document: Path) -> None:
    """A relative link names a file of the repository."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_of_a_document_exist(document: Path) -> None:
    """A `make` command in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    named = re.findall(r"(?:^|`)make ([a-z]+)", document.read_text(), re.MULTILINE)
    assert set(named) <= targets


def test_decisions_are_numbered_without_a_gap() -> None:
    """The pages of docs/adr are 0001, 0002 and so on, titled with their number."""
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))

    for number, page in enumerate(pages, start=1):
        assert page.name.startswith(f"{number:04d}-")
        assert page.read_text().startswith(f"# {number}. ")


def test_decisions_that_the_code_names_exist() -> None:
    """An `(ADR 0002)` in the code leads to a page."""
    pages = {page.name[:4] for page in (ROOT / "docs" / "adr").glob("*.md")}
    named = {
        number
        for path in [*CODE, ROOT / "pyproject.toml", ROOT / "CONTRIBUTING.md"]
        for number in re.findall(r"ADR (\d{4})", path.read_text())
    }

    assert named <= pages


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("tests/**/test_*.py")), ids=lambda path: path.name
)
def test_every_test_says_what_it_pins(path: Path) -> None:
    """Each test function has a docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not node.name.startswith("test_") or ast.get_docstring(node), node.name


def test_ci_runs_what_the_documents_promise() -> None:
    """CI and a developer run the same command."""
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


@pytest.mark.parametrize("body", ["exit 1", None], ids=["too old", "missing"])
def test_make_refuses_an_old_python(tmp_path: Path, body: str | None) -> None:
    """A Python that is too old or missing is one clear line, and nothing is left half made."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    if body:
        python.write_text(f"#!/bin/sh\n{body}\n")
        python.chmod(0o755)
    done = subprocess.run(
        ["make", "--silent", "setup", f"PYTHON={python}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode != 0
    assert f"{python} is missing or older than 3.11: install Python 3.11+" in done.stderr
    assert not (tmp_path / ".venv").exists()
