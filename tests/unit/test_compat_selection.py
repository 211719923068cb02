"""Which of Celery's tests `make compat` runs, how it splits them, what it reads in reports."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.compat import outcomes
from tests.compat.selection import EXCLUDED, NOT_IN_CI, PREFORK_ONLY, key_of, split, wanted

_LONG = "test_canvas.py::test_chord::test_enabling_flag_allow_error_cb_on_chord_header"
_TESTS = [f"test_canvas.py::test_chain::test_{number}[a::b]" for number in range(40)]

_REPORT = """
<testsuites><testsuite>
  <testcase classname="t.integration.test_canvas.test_chord" name="test_a[x.y]" />
  <testcase classname="t.integration.test_canvas.test_chord" name="test_b">
    <failure message="">first try</failure>
  </testcase>
  <testcase classname="t.integration.test_canvas.test_chord" name="test_b" />
  <testcase classname="t.integration.test_worker" name="test_c">
    <error message="">no worker</error>
  </testcase>
  <testcase classname="t.integration.test_worker" name="test_d">
    <skipped type="pytest.xfail" />
  </testcase>
</testsuite></testsuites>
"""


def test_every_test_is_in_one_shard_in_its_place() -> None:
    """The shards hold each test once, and keep the order of the whole run."""
    shards = split([*_TESTS, _LONG], 3)

    assert sorted(itertools.chain(*shards)) == sorted([*_TESTS, _LONG])
    for shard in shards:
        assert shard == [test for test in [*_TESTS, _LONG] if test in shard]


def test_a_long_test_gets_less_company() -> None:
    """The split goes by how long tests take, so a long one shares its shard with few."""
    with_long, without = sorted(split([*_TESTS, _LONG], 2), key=lambda shard: _LONG not in shard)

    assert len(with_long) < len(without) / 5


def test_fewer_tests_than_shards_leave_no_empty_shard() -> None:
    """A shard without tests would run the whole suite, so there is none."""
    assert split(_TESTS[:2], 6) == [[_TESTS[0]], [_TESTS[1]]]


def test_what_says_nothing_about_nats_is_not_run() -> None:
    """Single tests are left out, some of CI or of a pool alone."""
    excluded = next(key for key in EXCLUDED if "::" in key)
    [prefork_only] = PREFORK_ONLY
    not_in_ci = next(iter(NOT_IN_CI))
    tests = [excluded, not_in_ci, _TESTS[0]]

    assert wanted(tests, "threads", ci=False) == [not_in_ci, _TESTS[0]]
    assert wanted(tests, "threads", ci=True) == [_TESTS[0]]
    assert wanted([prefork_only], "threads", ci=False) == []
    assert wanted([prefork_only], "prefork", ci=True) == [prefork_only]


def test_inspect_comes_first() -> None:
    """What other tests leave in the worker's schedule would be in its answers."""
    inspect = "test_inspect.py::test_Inspect::test_scheduled"

    assert wanted([_TESTS[1], _TESTS[0], inspect], "prefork", ci=False) == [
        inspect,
        _TESTS[1],
        _TESTS[0],
    ]


def test_a_key_has_neither_class_nor_parameters() -> None:
    """The lists name tests by file and function; parameters may hold colons."""
    assert key_of("test_canvas.py::test_chain::test_x[a::b]") == "test_canvas.py::test_x"


def test_a_report_tells_the_last_try_of_each_test(tmp_path: Path) -> None:
    """A test that was run again has its last outcome, and its tracebacks can be had."""
    report = tmp_path / "junit.xml"
    report.write_text(_REPORT)

    found = outcomes.read(report)

    assert found == {
        "test_canvas.py::test_chord::test_a[x.y]": "passed",
        "test_canvas.py::test_chord::test_b": "passed",
        "test_worker.py::test_c": "failed",
        "test_worker.py::test_d": "xfailed",
    }
    assert outcomes.failures(found) == ["test_worker.py::test_c"]
    assert "no worker" in outcomes.tracebacks(report, ["test_worker.py::test_c"])


def test_a_regression_passes_on_redis_and_not_on_nats() -> None:
    """A test that never came to an end on NATS counts as failed."""
    redis = {"a": "passed", "b": "failed", "c": "xpassed", "d": "passed"}
    nats = {"a": "failed", "b": "failed", "c": "missing", "d": "passed"}

    assert outcomes.regressions(redis, nats) == ["a", "c"]
