"""Which processes belong to an engine of a test: those whose environment names the test's own mark. Linux only."""

from __future__ import annotations

from pathlib import Path

MARK = "MUSUBI_TEST_MARK"


def marked(mark: str) -> list[int]:
    """Ids of running processes that were started, at whatever distance, with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0") and not _zombie(folder):
                    found.append(int(folder.name))
            except OSError:
                continue  # ended meanwhile, or not ours to read
    return found


def _zombie(folder: Path) -> bool:
    return (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def engines(mark: str) -> list[int]:
    """Those of them that run an engine or the guard that starts it, not ComfyUI itself."""
    return [process for process in marked(mark) if "main.py" not in _words(process)]


def _words(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "main.py"  # gone: no engine
