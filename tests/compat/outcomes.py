"""What the suites' runs came to: JUnit files in, one table out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

#: test (``file::Class::test[parameters]``) -> outcome
Outcomes = dict[str, str]

_GOOD = frozenset({"passed", "xpassed"})
_BAD = frozenset({"failed", "missing"})


def read(report: Path) -> Outcomes:
    """Return the outcomes in a JUnit file. A test that was run again has its last one."""
    outcomes: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes[_test_of(case)] = _outcome_of(case)
    return outcomes


def _test_of(case: ElementTree.Element) -> str:
    # t.integration.test_canvas.test_chain -> test_canvas.py::test_chain
    module = case.get("classname", "").split(".")
    file = next((part for part in module if part.startswith("test_")), module[-1])
    classes = module[module.index(file) + 1 :]
    return "::".join([f"{file}.py", *classes, case.get("name", "")])


def _outcome_of(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    skipped = case.find("skipped")
    if skipped is not None:
        return "xfailed" if "xfail" in skipped.get("type", "") else "skipped"
    return "passed"


def regressions(redis: Outcomes, nats: Outcomes) -> list[str]:
    """Return the tests that pass on Redis and not on NATS."""
    return [
        test
        for test, outcome in redis.items()
        if outcome in _GOOD and nats.get(test, "missing") in _BAD
    ]


def failures(outcomes: Outcomes) -> list[str]:
    """Return the tests that fail."""
    return [test for test, outcome in outcomes.items() if outcome in _BAD]


def tracebacks(report: Path, tests: Collection[str]) -> str:
    """Return why these tests failed, as far as a JUnit file tells."""
    return "\n".join(
        f"\n{_test_of(case)}\n{problem.text}"
        for case in ElementTree.parse(report).iter("testcase")
        if _test_of(case) in tests
        for problem in case
        if problem.tag in {"failure", "error"}
    )


def table(runs: Mapping[str, Outcomes], *, only_differences: bool = False) -> str:
    """Return a line per test: its name and its outcome in each run."""
    tests = sorted({test for outcomes in runs.values() for test in outcomes})
    rows = []
    for test in tests:
        cells = [outcomes.get(test, "missing") for outcomes in runs.values()]
        if not (only_differences and len(set(cells)) == 1):
            rows.append(f"{test:<100} " + " ".join(f"{cell:<9}" for cell in cells))
    heading = f"{'test':<100} " + " ".join(f"{name:<9}" for name in runs)
    return "\n".join([heading, *rows])


def totals(name: str, outcomes: Outcomes) -> str:
    """Return one line of counts."""
    counted = Counter(outcomes.values())
    return f"{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in counted.most_common())
