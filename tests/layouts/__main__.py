"""`python -m tests.layouts DIR [PATTERN]`: check a folder of layout files (`*.json.gz`) against our models.

One line for each file. Exit status 1 when a file misses or nothing could be checked. Files of models that are not
built here (yet) are listed as "not covered", never counted as good.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import traceback
from pathlib import Path

from .checks import check_file, read_layout, refusal


def check(path: Path) -> tuple[str, str]:
    """("ok" | "miss" | "uncovered", the lines to print)."""
    stem = path.name.removesuffix(".json.gz")
    try:
        found = check_file(path)
        count = len(read_layout(path))
    except Exception:  # a crash of a check is a miss of that file, and the next file is still checked
        return "miss", f"MISS  {stem:<48} the check itself failed\n{traceback.format_exc()}"
    if found is None:
        told = refusal(read_layout(path)) or "no model here has this layout"
        return "uncovered", f"--    {stem:<48} not covered: {told}"
    if not found:
        return "ok", f"ok    {stem:<48} {count:>5} names and shapes"
    shown = "\n".join(f"        {text}" for text in found[:5])
    more = f"\n        … {len(found) - 5} more" if len(found) > 5 else ""
    return "miss", f"MISS  {stem:<48} {len(found)} differences\n{shown}{more}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.layouts", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder of <name>.json.gz files")
    parser.add_argument("pattern", nargs="?", default="*", help="only files whose name fits, e.g. 'wan21_*'")
    chosen = parser.parse_args(argv)
    files = sorted(
        path
        for path in chosen.folder.glob("*.json.gz")
        if fnmatch.fnmatch(path.name[: -len(".json.gz")], chosen.pattern)
    )
    if not files:
        print(f"error: no layout file in {chosen.folder} fits {chosen.pattern!r}", file=sys.stderr)
        return 2
    counts = {"ok": 0, "miss": 0, "uncovered": 0}
    for path in files:
        verdict, text = check(path)
        counts[verdict] += 1
        print(text, flush=True)
    print(f"{counts['ok']} good, {counts['miss']} missed, {counts['uncovered']} not covered")
    return 1 if counts["miss"] or not counts["ok"] else 0


if __name__ == "__main__":
    sys.exit(main())
