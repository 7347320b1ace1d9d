"""Children of the engine find what their parent finds, from any folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from engine.contract.children import PACK, module_command


def test_a_child_keeps_the_persons_packages_and_sees_no_stray_files(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "folder"
    for place in (theirs, folder):
        place.mkdir()
    (theirs / "wanted.py").write_text("import sys, engine\nprint(engine.__file__, sys.argv[1:])\n")
    (folder / "engine.py").write_text("raise SystemExit('the wrong engine')\n")
    ran = subprocess.run(
        module_command("wanted", "a b"), cwd=folder, env={**os.environ, "PYTHONPATH": str(theirs)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == f"{PACK / 'engine' / '__init__.py'} ['a b']\n", ran.stderr
