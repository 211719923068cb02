"""`data_processing`: the numbers, the file format and the walls of the data directory."""

from __future__ import annotations

import csv
import json
import os
import statistics
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.market import (
    SHIPPED_DATA_DIR,
    PriceRow,
    RollingMean,
    analyze,
    data_processing,
    find_input,
    read_prices,
)

PRICES = st.floats(min_value=1e-300, max_value=1e300)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    monkeypatch.setenv("TASK_DATA_DIR", str(directory))
    return directory


def write(directory: Path, *lines: str, name: str = "prices.csv") -> Path:
    path = directory / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(**changes: Any) -> dict[str, Any]:
    arguments = {
        "input": "prices.csv",
        "operation": "analyze",
        "parameters": {"window": 2, "threshold": 0.05},
    }
    return data_processing.run(**(arguments | changes))


# -- numbers ---------------------------------------------------------------------------


def test_documented_request_agrees_with_an_independent_computation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The spec's own request on the shipped series gives what `statistics` gives."""
    monkeypatch.delenv("TASK_DATA_DIR", raising=False)
    with (SHIPPED_DATA_DIR / "market_data.csv").open(newline="") as file:
        rows = [(row["date"], float(row["price"])) for row in csv.DictReader(file)]
    expected = []
    for end in range(60, len(rows) + 1):
        date, price = rows[end - 1]
        mean = statistics.fmean(price for _, price in rows[end - 60 : end])
        if abs(price / mean - 1) > 0.05:
            expected.append((date, price, mean))

    result = run(input="market_data.csv", parameters={"window": 60, "threshold": 0.05})

    assert (result["row_count"], result["first_date"], result["last_date"]) == (
        123,
        "2000-01-01",
        "2010-03-01",
    )
    found = [(row["date"], row["price"]) for row in result["deviations"]]
    assert found == [(date, price) for date, price, _ in expected]
    assert [row["mean"] for row in result["deviations"]] == pytest.approx(
        [mean for *_, mean in expected], rel=1e-12
    )
    assert 0 < len(found) < 64
    assert json.loads(json.dumps(result)) == result


@given(values=st.lists(PRICES, max_size=40), window=st.integers(2, 12))
def test_rolling_mean_is_the_exact_mean_of_its_window(values: list[float], window: int) -> None:
    """Every mean is the exact one, rounded once, however large the numbers before it were."""
    mean_of = RollingMean(window)

    for count, value in enumerate(values, start=1):
        held = values[count - window : count] if count >= window else None
        exact = held and float(sum(map(Fraction, held)) / window)
        assert mean_of.push(value) == exact


@given(prices=st.lists(PRICES, min_size=1, max_size=40), threshold=st.floats(0.001, 2))
def test_deviations_are_exactly_the_rows_beyond_the_threshold(
    prices: list[float], threshold: float
) -> None:
    """No row that deviates more is left out and none that deviates less is in."""
    rows = [PriceRow(f"{number:02d}", price) for number, price in enumerate(prices)]

    result = analyze(rows, 3, threshold)

    expected = {}
    for end in range(3, len(prices) + 1):
        mean = statistics.fmean(prices[end - 3 : end])
        expected[f"{end - 1:02d}"] = (prices[end - 1] - mean) / mean
    found = {row["date"]: row["deviation"] for row in result["deviations"]}
    for date, deviation in expected.items():
        if abs(abs(deviation) - threshold) > 1e-9:
            assert (date in found) == (abs(deviation) > threshold)
    assert all(deviation == pytest.approx(expected[date]) for date, deviation in found.items())


def test_row_exactly_at_the_threshold_does_not_count() -> None:
    """A deviation must be more than the threshold."""
    rows = [PriceRow("2025-01-01", 1.0), PriceRow("2025-01-02", 3.0)]

    assert analyze(rows, 2, 0.5)["deviations"] == []
    assert analyze(rows, 2, 0.49)["deviations"] == [
        {"date": "2025-01-02", "price": 3.0, "mean": 2.0, "deviation": 0.5}
    ]


def test_fall_is_a_negative_deviation() -> None:
    """The sign tells on which side of the mean the price is."""
    rows = [PriceRow("2025-01-01", 3.0), PriceRow("2025-01-02", 1.0)]

    assert [row["deviation"] for row in analyze(rows, 2, 0.1)["deviations"]] == [-0.5]


def test_fewer_rows_than_the_window_have_no_deviation() -> None:
    """Without one full window there is no mean to leave."""
    result = analyze([PriceRow("2025-01-01", 1.0), PriceRow("2025-01-02", 9.0)], 3, 0.1)

    assert result["row_count"] == 2
    assert result["deviations"] == []


# -- file format -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    ["date,price", "Date,Close", "DAY, Adj Close ", "timestamp,adj_close", "\ufeffDate,VALUE"],
)
def test_columns_are_found_by_name(data_dir: Path, header: str) -> None:
    """Case, blanks, underscores and a byte order mark do not hide a column."""
    path = write(data_dir, header, "2025-01-01,1.5")

    assert list(read_prices(path)) == [PriceRow("2025-01-01", 1.5)]


def test_other_columns_and_their_order_do_not_matter(data_dir: Path) -> None:
    """A full market export is read as it is; the adjusted close goes before the plain one."""
    path = write(
        data_dir, "Open,Close,Adj Close,Date", '"1,0",2,3,2025-01-01', "", "1,4,5,2025-01-02"
    )

    assert list(read_prices(path)) == [PriceRow("2025-01-01", 3.0), PriceRow("2025-01-02", 5.0)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["price"], "line 1: no date column.*has .'price'"),
        (["date,volume"], "line 1: no price column"),
        (["date,price", "2025-01-01,1", "2025-01-02"], "line 3: 1 cells under a header of 2"),
        (["date,price", "2025-01-01,1,2"], "line 2: 3 cells"),
        (["date,price", "yesterday,1"], "line 2: date 'yesterday' is not ISO 8601"),
        (["date,price", "2025-02-30,1"], "line 2: date '2025-02-30'"),
        (["date,price", "2025-01-02,1", "2025-01-01,1"], "line 3: date 2025-01-01 is before"),
        (["date,price", "2025-01-01,"], "line 2: price '' is not a number above 0"),
        (["date,price", "2025-01-01,nan"], "line 2: price 'nan'"),
        (["date,price", "2025-01-01,inf"], "line 2: price 'inf'"),
        (["date,price", "2025-01-01,0"], "line 2: price '0'"),
        (["date,price", "2025-01-01,-1"], "line 2: price '-1'"),
        (["date,price", "2025-01-01,1_000"], "line 2: price '1_000'"),
        (["date,price", '2025-01-01,"1'], "line 2: unexpected end of data"),
        (["date,price"], "no rows"),
    ],
)
def test_bad_row_is_refused_with_its_line(data_dir: Path, lines: list[str], message: str) -> None:
    """A row that cannot be read stops the task and says where to look."""
    write(data_dir, *lines)

    with pytest.raises(ValueError, match=message):
        run()


def test_times_with_and_without_a_zone_can_be_compared(data_dir: Path) -> None:
    """A time without a zone is UTC, so a mixed file is still checked for its order."""
    path = write(data_dir, "date,price", "2025-01-01T00:00:00Z,1", "2025-01-01T00:00:01,2")

    assert [row.price for row in read_prices(path)] == [1.0, 2.0]


def test_file_that_is_not_text_is_refused(data_dir: Path) -> None:
    """Bytes that are no UTF-8 give an error that says so."""
    (data_dir / "prices.csv").write_bytes(b"date,price\n2025-01-01,\xff\n")

    with pytest.raises(ValueError, match=r"prices\.csv is not UTF-8"):
        run()


def test_rows_are_read_one_at_a_time(data_dir: Path) -> None:
    """The first row comes out before a bad row further down is even looked at."""
    path = write(data_dir, "date,price", "2025-01-01,1", "bad,2")

    rows = read_prices(path)

    assert next(rows) == PriceRow("2025-01-01", 1.0)
    with pytest.raises(ValueError, match="line 3"):
        next(rows)


# -- the walls of the data directory -----------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret.csv",
        "sub/../../secret.csv",
        "sub/../prices.csv",
        "/etc/passwd",
        "prices.csv\0",
        "missing.csv",
        "sub",
        "x" * 5000,
    ],
)
def test_name_that_is_no_file_inside_is_refused(data_dir: Path, name: str) -> None:
    """Neither a way out nor a directory nor a missing file is ever opened."""
    write(data_dir, "date,price", "2025-01-01,1")
    write(data_dir.parent, "date,price", "2025-01-01,1", name="secret.csv")
    (data_dir / "sub").mkdir()

    with pytest.raises(ValueError, match=r"^input "):
        find_input(name)


@pytest.mark.parametrize("target", ["secret.csv", "."])
def test_symbolic_link_out_is_refused(data_dir: Path, target: str) -> None:
    """A link to a file or a directory outside is not followed."""
    write(data_dir.parent, "date,price", "2025-01-01,1", name="secret.csv")
    (data_dir / "link").symlink_to(data_dir.parent / target)

    with pytest.raises(ValueError, match="out of the data directory"):
        find_input("link" if target == "secret.csv" else "link/secret.csv")


def test_directory_with_a_similar_name_is_outside(data_dir: Path) -> None:
    """A sibling whose name starts with the data directory's own is not inside it."""
    sibling = data_dir.parent / "data-private"
    sibling.mkdir()
    write(sibling, "date,price", "2025-01-01,1")
    (data_dir / "link.csv").symlink_to(sibling / "prices.csv")

    with pytest.raises(ValueError, match="out of the data directory"):
        find_input("link.csv")


def test_link_that_leads_to_itself_is_refused(data_dir: Path) -> None:
    """A loop of links ends in the ordinary error, not in an unexpected one."""
    (data_dir / "loop.csv").symlink_to("loop.csv")

    with pytest.raises(ValueError, match="no file in the data directory"):
        find_input("loop.csv")


def test_named_pipe_is_refused(data_dir: Path) -> None:
    """Opening a pipe would hold the worker until somebody wrote to it."""
    os.mkfifo(data_dir / "pipe.csv")

    with pytest.raises(ValueError, match="no file in the data directory"):
        find_input("pipe.csv")


def test_file_in_a_subdirectory_and_link_inside_are_read(data_dir: Path) -> None:
    """What stays inside the data directory may be arranged as its owner likes."""
    (data_dir / "sub").mkdir()
    inside = write(data_dir / "sub", "date,price", "2025-01-01,1")
    (data_dir / "today.csv").symlink_to("sub/prices.csv")

    assert find_input("sub/prices.csv") == inside.resolve()
    assert find_input("today.csv") == inside.resolve()


# -- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 1, "threshold": 0.05}, "window"),
        ({"window": 2.5, "threshold": 0.05}, "window"),
        ({"window": True, "threshold": 0.05}, "window"),
        ({"window": 2, "threshold": 0}, "threshold"),
        ({"window": 2, "threshold": float("nan")}, "threshold"),
        ({"window": 2, "threshold": float("inf")}, "threshold"),
        ({"window": 2}, "threshold"),
        ({"window": 2, "threshold": 0.05, "windw": 3}, "unknown .'windw'"),
        ([2, 0.05], "object"),
    ],
)
def test_wrong_parameters_are_refused_by_name(parameters: Any, message: str) -> None:
    """A caller who comes through Celery and not the API gets an error that names the field."""
    with pytest.raises(ValueError, match=f"^parameters: .*{message}"):
        run(parameters=parameters)


def test_unknown_operation_is_refused() -> None:
    """The error lists the operations there are."""
    with pytest.raises(ValueError, match=r"operation must be one of .*analyze"):
        run(operation="guess")
