"""A row of the test matrix (tests/test_matrix.py). Each family's rows stand in `tests/families/<family>/matrix.py`:

CASES                       the rows
write_models(folder)        writes the small models of all its variants
models(folder, case, verb)  the options that name a row's models for a command, and how long its result is
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SIZE, FRAMES = (64, 48), 9
START, END, CONTROL = "start.png", "end.png", "control.mp4"
"""Names of drawn files: where an option of `generate` has one of them, it becomes the file's path."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One variant, what it is trained on, and what its commands need besides."""

    family: str
    variant: str
    images: bool = False  # what is trained on; otherwise videos
    controls: int = 0  # for each item
    keys: str = ""  # further lines of the dataset file
    task: str = ""
    cache: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    picture: bool = False  # one image comes out, not a video
    experts: int = 1
    trained_as: str = ""  # the variant whose model learns in its place, where its own only generates

    @property
    def name(self) -> str:
        kind = "single frames" if "one_frame" in self.cache else "images" if self.images else "videos"
        return f"{self.family} {self.task or self.variant} from {kind}"


SINGLE = {"images": True, "picture": True}
FROM_IMAGE = {"generate": {"image_path": START}}
ONE_FRAME = {"one_frame": True}
TWO_PLACES = {
    "keys": "fp_1f_clean_indices = [0, 2]\nfp_1f_target_index = 1",
    "generate": {"one_frame_inference": "target_index=1,control_index=0;2", "control_image_path": [START, END]},
    "controls": 2,
}
"""A frame between two that are given."""
