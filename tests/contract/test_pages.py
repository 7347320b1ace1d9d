"""The reference pages match the declarations."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract import cli, pages
from engine.contract.errors import DataError
from engine.contract.events import Control, Event
from engine.tasks import docs

PACK = Path(cli.__file__).parents[2]


def test_the_pages_in_the_tree_are_up_to_date() -> None:
    assert pages.stale(PACK / "docs" / "options") == [], "Run `python -m engine docs`."


def test_the_same_declarations_give_the_same_pages() -> None:
    assert pages.pages() == pages.pages()
    assert {"README.md", "train-wan.md", "dataset-check.md"} <= set(pages.pages())


def test_writing_mends_what_is_stale_and_leaves_others_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text("# Not made by us\n", encoding="utf-8")
    assert pages.stale(tmp_path) == sorted(pages.pages()) == pages.write(tmp_path)
    assert pages.stale(tmp_path) == []
    (tmp_path / "train-wan.md").write_text("old", encoding="utf-8")
    (tmp_path / "gone.md").write_text(pages.NOTE, encoding="utf-8")
    assert pages.stale(tmp_path) == ["gone.md", "train-wan.md"] == pages.write(tmp_path)
    assert (tmp_path / "mine.md").exists() and not (tmp_path / "gone.md").exists()


def test_the_command_writes_or_checks(tmp_path: Path) -> None:
    said: list[Event] = []
    check = cli.parse(["docs", "--check", "--docs_dir", str(tmp_path)])
    write = cli.parse(["docs", "--docs_dir", str(tmp_path)])
    assert check is not None and write is not None
    with pytest.raises(DataError, match=r"are not up to date: README\.md"):
        docs.run(check, said.append, Control())
    assert list(tmp_path.iterdir()) == []
    docs.run(write, said.append, Control())
    assert len(said) == len(pages.pages()) and "up to date" in docs.run(check, said.append, Control())


def test_tables_are_whole() -> None:
    for name, text in pages.pages().items():
        for line in text.splitlines():
            if line.startswith("|"):
                cells = line.replace("\\|", "").count("|")
                assert cells == (3 if name == "README.md" else 5), f"{name}: {line}"
