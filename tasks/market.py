"""`data_processing`: find the days on which a price left its rolling mean."""

from __future__ import annotations

import csv
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, TypedDict, get_args

import msgspec
from msgspec import Meta

from tasks.app import app

#: Environment variable that names the directory of the input files.
DATA_DIR_VARIABLE: Final = "TASK_DATA_DIR"
SHIPPED_DATA_DIR: Final = Path(__file__).parent / "data"

#: Names a column may have, best first; compared without case, `_` counts as a space.
DATE_COLUMNS: Final = ("date", "day", "timestamp", "datetime", "time")
PRICE_COLUMNS: Final = ("price", "adj close", "adjusted close", "close", "value")

Operation = Literal["analyze"]


class AnalyzeParameters(TypedDict):
    """Parameters of the operation `analyze`."""

    window: Annotated[int, Meta(ge=2, description="rows in the rolling mean, this one included")]
    threshold: Annotated[
        float, Meta(gt=0, description="deviation from the mean that counts, 0.05 is 5 %")
    ]


class Deviation(TypedDict):
    """One row whose price is too far from the rolling mean."""

    date: str
    price: float
    mean: float
    #: (price - mean) / mean: below 0 where the price is lower
    deviation: float


class Analysis(TypedDict):
    """Result of the operation `analyze`."""

    row_count: int
    first_date: str
    last_date: str
    window: int
    threshold: float
    deviations: list[Deviation]


class PriceRow(NamedTuple):
    """One row of an input file; the date stands as it is written there."""

    date: str
    price: float


class RollingMean:
    """The mean of the last `window` values, rounded once and never drifting."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._values: deque[Fraction] = deque()
        # Exact: a running sum of floats would carry each rounding error to all later rows.
        self._sum = Fraction()

    def push(self, value: float) -> float | None:
        """Take one finite value; return the mean that ends at it, None before a full window."""
        exact = Fraction(value)
        self._values.append(exact)
        self._sum += exact
        if len(self._values) > self._window:
            self._sum -= self._values.popleft()
        if len(self._values) < self._window:
            return None
        return float(self._sum / self._window)


@app.task(name="data_processing")
def data_processing(
    input: Annotated[str, Meta(min_length=1, description="a CSV file in the data directory")],
    operation: Operation,
    parameters: AnalyzeParameters,
) -> Analysis:
    """Find the rows of a CSV file whose price deviates from its rolling mean."""
    if operation not in get_args(Operation):
        raise ValueError(f"operation must be one of {get_args(Operation)}, not {operation!r}")
    checked = _check(parameters)
    return analyze(read_prices(find_input(input)), checked["window"], checked["threshold"])


def _check(parameters: AnalyzeParameters) -> AnalyzeParameters:
    try:
        checked = msgspec.convert(parameters, AnalyzeParameters)
    except msgspec.ValidationError as error:
        raise ValueError(f"parameters: {error}") from error
    if unknown := sorted(set(parameters) - set(checked)):
        raise ValueError(f"parameters: unknown {unknown}; known are {sorted(checked)}")
    if math.isinf(checked["threshold"]):
        raise ValueError("parameters: threshold must be a finite number")
    return checked


def analyze(rows: Iterable[PriceRow], window: int, threshold: float) -> Analysis:
    """Return every row that deviates from its rolling mean by more than `threshold`.

    The mean of a row is that of the `window` rows that end with it; earlier rows have none.
    `threshold` is relative to the mean. Raises ValueError if there are no rows.
    """
    mean_of = RollingMean(window)
    deviations: list[Deviation] = []
    first: PriceRow | None = None
    last: PriceRow | None = None
    row_count = 0
    for last in rows:
        row_count += 1
        first = first or last
        mean = mean_of.push(last.price)
        if mean is None:
            continue
        deviation = (last.price - mean) / mean
        if abs(deviation) > threshold:
            found = Deviation(date=last.date, price=last.price, mean=mean, deviation=deviation)
            deviations.append(found)
    if first is None or last is None:
        raise ValueError("the input has a header but no rows; nothing to analyze")
    return Analysis(
        row_count=row_count,
        first_date=first.date,
        last_date=last.date,
        window=window,
        threshold=threshold,
        deviations=deviations,
    )


def find_input(name: str) -> Path:
    """Return the file of this name in the data directory.

    The name may lead through subdirectories and symbolic links, but not out of the directory.
    Raises ValueError for a name that does, and for one that names no file.
    """
    parts = Path(name).parts
    if not parts or "\0" in name or ".." in parts or Path(name).is_absolute():
        raise ValueError(f"input must be a file name inside the data directory, not {name!r}")
    # The task's environment is read when it runs, so a worker started by anything sees it.
    root = Path(os.environ.get(DATA_DIR_VARIABLE) or SHIPPED_DATA_DIR).resolve()
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(root):
        raise ValueError(f"input {name!r} leads out of the data directory")
    try:
        found = path.is_file()
    except OSError as error:
        raise ValueError(f"input {name!r} cannot be read: {error.strerror}") from error
    if not found:
        raise ValueError(
            f"input {name!r} is no file in the data directory; "
            f"put it there, or set {DATA_DIR_VARIABLE} where the worker starts"
        )
    return path


def read_prices(path: Path) -> Iterator[PriceRow]:
    """Yield the rows of a CSV file, one at a time.

    The file is UTF-8 with a header; its rows are sorted by date (ISO 8601), oldest first, and
    prices are above 0. Empty lines are skipped. Raises ValueError with the line number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _parse(file, path.name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror}") from error


def _parse(lines: Iterable[str], file_name: str) -> Iterator[PriceRow]:
    reader = csv.reader(lines, strict=True)
    previous: datetime | None = None
    try:
        header: list[str] = next(reader, [])
        date_at = _column(header, "date", DATE_COLUMNS)
        price_at = _column(header, "price", PRICE_COLUMNS)
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
            date = cells[date_at].strip()
            moment = _moment(date)
            if previous is not None and moment < previous:
                raise ValueError(f"date {date} is before the row above; sort by date, oldest first")
            previous = moment
            yield PriceRow(date, _price(cells[price_at]))
    except (ValueError, csv.Error) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise ValueError(f"{file_name} line {reader.line_num}: {error}") from error


def _column(header: list[str], what: str, candidates: tuple[str, ...]) -> int:
    names = [name.strip().casefold().replace("_", " ") for name in header]
    for candidate in candidates:
        if candidate in names:
            return names.index(candidate)
    raise ValueError(
        f"no {what} column: the header must name one of {', '.join(candidates)}, has {header}"
    )


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"date {text!r} is not ISO 8601, such as 2025-06-29") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    # Python's float() also reads 1_000, which no CSV means.
    if not 0 < price < math.inf or "_" in text:
        raise ValueError(f"price {text!r} is not a number above 0")
    return price
