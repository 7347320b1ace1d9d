"""Rows of figures as a table for people, and what compares them. A row is a dict as it stands in a case's JSON file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def compared(rows: Iterable[Row], *, baseline: str) -> list[Row]:
    """The rows with the time of their baseline beside them: that of the mode `baseline` at the same shape."""
    rows = [{name: value for name, value in row.items() if not name.startswith("baseline_")} for row in rows]
    plain = {_shape(row): row for row in rows if row["mode"] == baseline and row.get("seconds")}
    found = []
    for row in rows:
        base = plain.get(_shape(row))
        if base is not None and row.get("seconds"):
            row |= {"baseline_mode": baseline, "baseline_seconds": base["seconds"]}
            if base.get("backward_seconds") and row.get("backward_seconds"):
                row["baseline_backward_seconds"] = base["backward_seconds"]
        found.append(row)
    return found


def _shape(row: Row) -> tuple[int, ...]:
    return tuple(row.get("shape", ()))


def _number(name: str, digits: int) -> Callable[[Row], str]:
    return lambda row: "" if row.get(name) is None else f"{row[name]:.{digits}f}"


def _time(name: str) -> Callable[[Row], str]:
    def shown(row: Row) -> str:
        seconds = row.get(name)
        if seconds is None:
            return ""
        return f"{seconds:.3f} s" if seconds >= 1 else f"{1000 * seconds:.3f} ms"

    return shown


def _share(row: Row) -> str:
    return f"{row['utilisation']:.0%}" if row.get("utilisation") else ""


def _faster(name: str) -> Callable[[Row], str]:
    def shown(row: Row) -> str:
        own, base = row.get(name), row.get(f"baseline_{name}")
        return f"{base / own:.2f}x" if own and base else ""

    return shown


Column = tuple[str, Callable[[Row], str]]
COMMANDS: tuple[Column, ...] = (
    ("time", _time("seconds")), ("faster", _faster("seconds")), ("alloc", _number("peak_alloc_gib", 2)),
    ("reserved", _number("peak_reserved_gib", 2)), ("planned", _number("predicted_gib", 2)),
    ("RAM", _number("peak_ram_gib", 2)), ("TFLOP/s", _number("tflop_per_s", 0)), ("use", _share),
    ("first step", _number("first_step_after_s", 1)),
)  # fmt: skip
KERNELS: tuple[Column, ...] = (
    ("shape", lambda row: "x".join(map(str, _shape(row)))), ("forward", _time("seconds")),
    ("faster", _faster("seconds")), ("TFLOP/s", _number("tflop_per_s", 0)), ("backward", _time("backward_seconds")),
    ("faster", _faster("backward_seconds")), ("TFLOP/s", _number("backward_tflop_per_s", 0)),
    ("error", _number("error", 5)),
)  # fmt: skip
UNITS = (
    "Memory in GiB; planned: what the planner expected for alloc; use: share of what large bf16 products reach here;\n"
    "first step: seconds from the start of the process."
)


def drawn(results: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Cases with their rows, as text."""
    lines: list[str] = []
    for columns in (COMMANDS, KERNELS):
        kernels = columns is KERNELS
        group = [(name, rows) for name, rows in results if any("shape" in row for row in rows) == kernels and rows]
        if group:
            lines += [*_table(group, columns), ""]
    return "\n".join([*lines, UNITS])


def _table(group: Sequence[tuple[str, Sequence[Row]]], columns: Sequence[Column]) -> list[str]:
    cells = [["case", "mode", *(title for title, _ in columns), ""]]
    for name, rows in group:
        for row in rows:
            cells.append([name, row["mode"], *(shown(row) for _, shown in columns), remark(row)])
            name = ""
    widths = [max(len(line[column]) for line in cells) for column in range(len(columns) + 2)]
    return [
        "  ".join(
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in cells
    ]


def remark(row: Row) -> str:
    """Why there are no figures, if there are none."""
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    if "failed" in row:
        words = {"memory": "out of memory"}
        return words.get(row["failed"]["kind"], row["failed"]["message"])
    return ""
