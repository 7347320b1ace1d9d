"""Places in time: how they are written, and in what order the frames come."""

from __future__ import annotations

import pytest

from engine.contract.errors import OptionError
from engine.families.wan.one_frame import OneFrame, order, parse


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("target_index=1,control_index=0", OneFrame(1, (0,))),
        ("control_index=0;10, target_index=5", OneFrame(5, (0, 10))),
        ("target_index=9", OneFrame(9, (0,))),
    ],
)
def test_written(text, wanted):
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["default", "target_index=-1", "target_index=1;2", "control_index=a", "target_index=1,target_index=2"]
)
def test_nonsense_is_refused(text):
    with pytest.raises(OptionError, match="--one_frame_inference"):
        parse(text)


def test_frames_come_in_the_order_of_their_places():
    assert order(5, [10, 0]) == [(0, 1), (5, None), (10, 0)]
    with pytest.raises(ValueError, match="same place"):
        order(0, [0])
