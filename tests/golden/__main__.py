"""`python -m tests.golden DIR [PATTERN]`: check our numbers against a folder of reference files.

One line for each file: the largest error found and the error allowed. Exit status 1 when a file misses, or when
nothing could be checked. A file that no check knows is listed as "not covered", never counted as good.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from .kit import Golden, Row, read_golden

Check = Callable[[Golden], Iterable[Row]]


def checks() -> dict[str, Check]:
    """Every check in this folder, by the pattern of the file stems that it knows."""
    found: dict[str, Check] = {}
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("check_"):
            found.update(importlib.import_module(f"{__package__}.{module.name}").CHECKS)
    return found


def find_check(stem: str, known: dict[str, Check]) -> Check | None:
    """The check with the longest pattern that fits, so that a special one wins over a general one."""
    fitting = [pattern for pattern in known if fnmatch.fnmatch(stem, pattern)]
    return known[max(fitting, key=len)] if fitting else None


def line(stem: str, rows: list[Row]) -> str:
    """What a person reads about one file."""
    missed = [row for row in rows if not row.good]
    worst = max(rows, key=lambda row: row.error / row.limit if row.limit else row.error)
    verdict = "MISS" if missed else "ok  "
    shown = f"{verdict}  {stem:<36} {len(rows) - len(missed):>4}/{len(rows):<4} worst {worst.error:.2e}"
    return f"{shown} (limit {worst.limit:.0e}, {worst.label})"


def check_file(path: Path, known: dict[str, Check]) -> tuple[str, str]:
    """Check one file: ("ok" | "miss" | "uncovered", the lines to print)."""
    check = find_check(path.stem, known)
    if check is None:
        return "uncovered", f"--    {path.stem:<36} not covered: no check knows this file"
    try:
        rows = list(check(read_golden(path)))
    except Exception:  # a crash of a check is a miss of that file, and the next file is still checked
        return "miss", f"MISS  {path.stem:<36} the check itself failed\n{traceback.format_exc()}"
    if not rows:
        return "miss", f"MISS  {path.stem:<36} the check compared nothing"
    details = [f"        {row.label}: {row.error:.3e} > {row.limit:.0e}" for row in rows if not row.good]
    verdict = "miss" if details else "ok"
    return verdict, "\n".join([line(path.stem, rows), *details])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of <name>.json (+ <name>.safetensors) files")
    parser.add_argument("pattern", nargs="?", default="*", help="only files whose name fits, e.g. 'wan_*'")
    chosen = parser.parse_args(argv)
    files = sorted(path for path in chosen.folder.glob("*.json") if fnmatch.fnmatch(path.stem, chosen.pattern))
    if not files:
        print(f"error: no golden file in {chosen.folder} fits {chosen.pattern!r}", file=sys.stderr)
        return 2
    known = checks()
    counts = {"ok": 0, "miss": 0, "uncovered": 0}
    for path in files:
        verdict, text = check_file(path, known)
        counts[verdict] += 1
        print(text, flush=True)
    print(f"{counts['ok']} good, {counts['miss']} missed, {counts['uncovered']} not covered")
    return 1 if counts["miss"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
