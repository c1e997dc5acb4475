"""Reads parquet tables of LeRobot data sets: columns of numbers, and parts of them. Needs pyarrow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ai_wam.errors import InvalidValue, MissingPackage
from ai_wam.files.atomic import AnyPath

_COLUMN = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>[0-9]+)(:(?P<stop>[0-9]+))?\])?")


def parquet() -> Any:
    """The module that reads and writes parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(
            "LeRobot data sets are parquet files, which need pyarrow: pip install 'ai-wam[lerobot]'"
        ) from error
    return pyarrow.parquet


def column_names(path: AnyPath) -> list[str]:
    """Names of a file's columns.

    Raises:
        ValueError: it cannot be read.
    """
    return list(_reading(path, lambda stream: parquet().read_schema(stream).names))


def read_columns(path: AnyPath, names: Sequence[str], **more: Any) -> Any:
    """Columns of a file as a pyarrow table.

    Args:
        path: the file.
        names: of the columns.
        more: further arguments of `pyarrow.parquet.read_table`, such as `filters`.

    Raises:
        ValueError: it cannot be read, or lacks a column.
    """
    there = column_names(path)
    if missing := sorted(set(names) - set(there)):
        raise InvalidValue(f"{path} has no column {missing}, it has {sorted(there)}; copy the data set again")
    return _reading(path, lambda stream: parquet().read_table(stream, columns=sorted(names), **more))


def _reading(path: AnyPath, read: Any) -> Any:
    parquet()  # a missing package is another error than a broken file
    import pyarrow

    try:
        with path.open("rb") as stream:
            return read(stream)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InvalidValue(f"{path}: {error}; or copy the file again") from error


def numbers(column: Any, at: str) -> Float[np.ndarray, "t n"]:
    """A column of numbers, or of equally long lists of them, one row per frame; NaN where one is null.

    Args:
        column: of a pyarrow table.
        at: file and column, for the error.

    Raises:
        ValueError: it holds other things, empty rows, or rows of different lengths.
    """
    import pyarrow.types as kinds

    kind = column.type
    while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (kinds.is_floating(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind)):
        raise InvalidValue(f"{at} holds {column.type}, expected numbers; set another column")
    rows = column.to_pylist()
    if kind is not column.type and (empty := [i for i, row in enumerate(rows) if row is None]):
        raise InvalidValue(f"{at}, row {empty[0]} is null, expected numbers; record the episode again")
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    except ValueError as error:
        raise InvalidValue(
            f"{at}: its rows have different lengths ({error}); set another column, or leave the data set out"
        ) from error


def whole_numbers(column: Any, at: str) -> list[int]:
    """A column of whole numbers.

    Raises:
        ValueError: it holds other things, or nulls.
    """
    import pyarrow.types as kinds

    if not kinds.is_integer(column.type) or column.null_count:
        raise InvalidValue(
            f"{at} holds {column.type} with {column.null_count} nulls, expected whole numbers; copy the data "
            "set again"
        )
    return list(column.to_pylist())


@dataclass(frozen=True)
class Column:
    """A column, or a part of each of its rows.

    Attributes:
        name: of the column.
        text: as it was written: `action`, `action[7]` or `action[0:3]`.
        first: first number that is taken; None for the whole row.
        stop: one beyond the last number.
    """

    name: str
    text: str
    first: int | None = None
    stop: int = 0

    @classmethod
    def parse(cls, text: str) -> "Column":
        """Read such a text.

        Raises:
            ValueError: another form, or a part without numbers.
        """
        found = _COLUMN.fullmatch(text)
        if found is None:
            raise InvalidValue(f"column {text!r}: expected a name such as action, action[7] or action[0:3]")
        if found["first"] is None:
            return cls(found["name"], text)
        first = int(found["first"])
        stop = int(found["stop"]) if found["stop"] else first + 1
        if stop <= first:
            raise InvalidValue(
                f"column {text!r}: the part in brackets is empty; its second number is one beyond the last"
            )
        return cls(found["name"], text, first, stop)

    def of(self, table: Mapping[str, np.ndarray], width: int | None, at: str) -> Float[np.ndarray, "t n"]:
        """The part of every row.

        Args:
            table: columns by name.
            width: how many numbers it must have; any if None.
            at: file and episode, for the error.

        Raises:
            ValueError: it reaches beyond the row, or has another width.
        """
        values = table[self.name]
        there = values.shape[1]
        if self.first is not None and self.stop > there:
            raise InvalidValue(
                f"{at}: {self.text} reaches beyond {self.name!r}, which has {there} numbers per row (0 to "
                f"{there - 1}); correct the part in brackets"
            )
        chosen = values if self.first is None else values[:, self.first : self.stop]
        if width is not None and chosen.shape[1] != width:
            raise InvalidValue(
                f"{at}: {self.text} gives {chosen.shape[1]} of {there} numbers per row, expected {width}; "
                "correct the part in brackets"
            )
        return chosen
