"""Which Python makes the environment, and what is said when none will do."""

from __future__ import annotations

from typing import Any

import pytest

from env_bootstrap import interpreters
from env_bootstrap.interpreters import choose_maker
from env_bootstrap.problems import Problem

from .conftest import PROBE, World


def probe(world: World, **changes: Any) -> None:
    world.set(probe={**PROBE, **changes})


@pytest.fixture(autouse=True)
def only_the_fake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake is the calling Python, and the PATH has no other one."""
    monkeypatch.setattr(interpreters, "calling_python", lambda: str(world.python))
    world.environment["PATH"] = str(world.folder / "path")
    world.script("placeholder", "")


def test_the_calling_python_when_it_can(world: World) -> None:
    maker = choose_maker(world.home, world.environment)
    assert maker.kind == "venv" and maker.command == (str(world.python), "-I", "-m", "venv")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"version": [3, 9, 18]}, "Python 3.9"),
        ({"version": [3, 15, 0]}, "Python 3.15"),
        ({"bits": 32}, "32-bit"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"free_threaded": True}, "free-threaded"),
        ({"platform": "darwin", "machine": "x86_64"}, "Intel"),
    ],
)
def test_a_python_that_pytorch_has_no_build_for(world: World, changes: dict[str, Any], word: str) -> None:
    probe(world, **changes)
    for wanted in ("", str(world.python)):
        with pytest.raises(Problem) as caught:
            choose_maker(world.home, world.environment, wanted=wanted)
        assert caught.value.kind == "python" and caught.value.exit_status == 2
        assert word in caught.value.message and caught.value.hint


def test_no_venv_module_names_the_package(world: World) -> None:
    probe(world, venv=False, pip=False, version=[3, 12, 3])
    with pytest.raises(Problem) as caught:
        choose_maker(world.home, world.environment)
    assert caught.value.kind == "venv" and "python3.12-venv" in caught.value.hint


def test_no_venv_module_but_virtualenv(world: World) -> None:
    probe(world, venv=False, virtualenv=True)
    assert choose_maker(world.home, world.environment).kind == "virtualenv"


def test_no_venv_module_but_uv(world: World) -> None:
    probe(world, venv=False)
    uv = world.script("uv", "")
    maker = choose_maker(world.home, world.environment)
    assert maker.kind == "uv" and maker.command == (str(uv), "venv", "--seed", "--python", str(world.python))
    assert "no venv module" in maker.note


def test_no_venv_module_and_nothing_else_fetches_uv(world: World) -> None:
    """ComfyUI's portable Python has pip but no venv: uv is fetched into the home."""
    probe(world, venv=False)
    maker = choose_maker(world.home, world.environment, fetch=lambda: "/home/uv")
    assert maker.kind == "uv" and maker.command[0] == "/home/uv"


def test_a_python_too_new_but_another_on_the_path(world: World) -> None:
    probe(world, version=[3, 15, 0])
    other = world.script("python3.12", "echo '" + __import__("json").dumps({**PROBE, "executable": "/p312"}) + "'\n")
    maker = choose_maker(world.home, world.environment)
    assert maker.interpreter == "/p312" and "3.15" in maker.note
    with pytest.raises(Problem):
        choose_maker(world.home, world.environment, wanted=str(world.python))
    other.unlink()


def test_a_wished_python_that_does_not_run(world: World) -> None:
    with pytest.raises(Problem) as caught:
        choose_maker(world.home, world.environment, wanted="/no/such/python")
    assert "/no/such/python" in caught.value.message and "--python" in caught.value.hint
