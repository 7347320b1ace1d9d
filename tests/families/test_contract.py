"""Every family has the files, constants and functions of engine/families/contract.py, with the same arguments."""

from __future__ import annotations

import inspect

import pytest

from engine.families import names, offers, part
from engine.families.contract import FILES, OPTIONAL_FILES

ALL = {**FILES, **OPTIONAL_FILES}


def owed_files(family: str) -> list[str]:
    pocket = ["pocket"] if offers(family, "pocket") else []
    return [*FILES, *(["image"] if part(family, "options").IMAGE_FILES else []), *pocket]


OWED = [(family, file) for family in names() for file in owed_files(family)]


@pytest.mark.parametrize(("family", "file"), OWED, ids="/".join)
def test_a_family_owes_its_functions(family, file):
    module, owed = part(family, file), ALL[file]
    for name in owed.__annotations__:
        assert hasattr(module, name), f"{file}.py lacks {name}"
    for name, arguments in owed_by(owed):
        assert hasattr(module, name), f"{file}.py lacks {name}"
        assert not differences(arguments, getattr(module, name))


@pytest.mark.parametrize(("family", "cut"), [("wan", None), ("hunyuan-video", None), ("framepack", (36, 3))])
def test_a_clip_is_one_sample_without_a_number_but_for_sections(family, cut):
    assert part(family, "options").cut_clip(129, window=9) == cut


def owed_by(owed: type) -> list[tuple[str, list[inspect.Parameter]]]:
    """The functions of one file of the contract, with their arguments."""
    functions = {name: function for name, function in vars(owed).items() if inspect.isfunction(function)}
    return [
        (name, list(inspect.signature(function).parameters.values())[1:])
        for name, function in functions.items()
        if not name.startswith("_")
    ]


def differences(owed: list[inspect.Parameter], function) -> list[str]:
    """What keeps a function from being called as the contract says."""
    has = inspect.signature(function).parameters
    found = [f"{function.__name__}: no {one.name}" for one in owed if one.name not in has]
    found += [
        f"{function.__name__}: {one.name} is not {one.kind.description}"
        for one in owed
        if one.name in has and has[one.name].kind is not one.kind
    ]
    known = {one.name for one in owed}
    return found + [
        f"{function.__name__}: {name} has no default, and nobody passes it"
        for name, one in has.items()
        if name not in known and one.default is inspect.Parameter.empty
    ]


def test_the_comparison_can_fail():
    def owed(self, path, *, device): ...

    def good(path, *, device, extra=1): ...

    def bad(file, *, device, extra): ...

    wanted = list(inspect.signature(owed).parameters.values())[1:]
    assert not differences(wanted, good)
    assert len(differences(wanted, bad)) == 3
