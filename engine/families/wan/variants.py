"""What each Wan task was made for, as tables. Standard library only.

Sources: the configurations of Wan2.1 9737cba9 and Wan2.2, and VideoX-Fun 804a4258's for Fun-Control and its camera.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
NEGATIVE_PROMPT_FLF2V = "镜头切换，" + NEGATIVE_PROMPT

LATENT_CHANNELS, MASK_CHANNELS = 16, 4
TIME_STRIDE, SPACE_STRIDE = 4, 8
CAMERA_POSES = {  # in the length of a clip, at speed 1: (right, down, forwards; turns to the right), as ComfyUI
    "static": (0.0, 0.0, 0.0, 0.0),
    "pan_up": (0.0, -1.5, 0.0, 0.0),
    "pan_down": (0.0, 1.5, 0.0, 0.0),
    "pan_left": (-1.5, 0.0, 0.0, 0.0),
    "pan_right": (1.5, 0.0, 0.0, 0.0),
    "zoom_in": (0.0, 0.0, 3.0, 0.0),
    "zoom_out": (0.0, 0.0, -3.0, 0.0),
    "anti_clockwise": (0.0, 0.0, 0.0, -1 / 6),
    "clockwise": (0.0, 0.0, 0.0, 1 / 6),
}
DEFAULT_TASK = "t2v-14B"
_SIZES_480 = ((480, 832), (832, 480))
_SIZES_720 = ((720, 1280), (1280, 720), *_SIZES_480)


@dataclass(frozen=True, kw_only=True)
class TaskDefaults:
    """What a task was made for. Sizes are (height, width); `boundary` is the sigma where two experts meet."""

    in_channels: int
    image_encoder: bool
    takes_context: bool = False  # VACE: a control video, its mask and reference images, for blocks of their own
    infer_steps: int
    flow_shift: float
    guidance_scale: float
    guidance_scale_high_noise: float | None = None
    boundary: float | None = None
    video_length: int = 81
    video_sizes: tuple[tuple[int, int], ...] = _SIZES_720
    negative_prompt: str = NEGATIVE_PROMPT

    @property
    def takes_image(self) -> bool:
        """Image-to-video: mask and image latents are its conditioning."""
        return self.in_channels == LATENT_CHANNELS + MASK_CHANNELS + LATENT_CHANNELS

    @property
    def takes_control(self) -> bool:
        """Fun-Control: latents of a control video and of a start image are its conditioning."""
        return self.in_channels == 3 * LATENT_CHANNELS

    @property
    def takes_camera(self) -> bool:
        """Fun-Control with a camera: latents of a start image, and rays beside them, are its conditioning."""
        return self.in_channels == 2 * LATENT_CHANNELS

    @property
    def trains(self) -> bool:
        """Whether caches hold what it is conditioned on."""
        return not (self.takes_context or self.takes_camera)


def _task(in_channels: int, steps: int, *, image: bool = False, **other: Any) -> TaskDefaults:
    values = {"flow_shift": 5.0, "guidance_scale": 5.0, **other}
    return TaskDefaults(in_channels=in_channels, image_encoder=image, infer_steps=steps, **values)


VARIANTS: dict[str, TaskDefaults] = {
    "t2v-1.3B": _task(16, 50, video_sizes=_SIZES_480),
    "t2v-14B": _task(16, 50),
    "t2i-14B": _task(16, 50, video_length=1, video_sizes=(*_SIZES_720, (1024, 1024))),
    "i2v-14B": _task(36, 40, image=True),
    "flf2v-14B": _task(36, 40, image=True, negative_prompt=NEGATIVE_PROMPT_FLF2V),
    "t2v-1.3B-FC": _task(48, 50, image=True, video_sizes=_SIZES_480),
    "t2v-14B-FC": _task(48, 50, image=True),
    "i2v-14B-FC": _task(48, 40, image=True),
    "camera-1.3B": _task(32, 50, image=True, guidance_scale=6.0, video_sizes=_SIZES_480),
    "camera-14B": _task(32, 50, image=True, guidance_scale=6.0),
    "vace-1.3B": _task(16, 50, takes_context=True, flow_shift=16.0, video_sizes=_SIZES_480),
    "vace-14B": _task(16, 50, takes_context=True, flow_shift=16.0),
    "t2v-A14B": _task(
        16, 40, flow_shift=12.0, guidance_scale=3.0, guidance_scale_high_noise=4.0, boundary=0.875
    ),
    "i2v-A14B": _task(36, 40, guidance_scale=3.5, guidance_scale_high_noise=3.5, boundary=0.9),
}  # fmt: skip
TASKS = tuple(VARIANTS)


def takes_two_images(task: str) -> bool:
    """Whether the model sees CLIP features of a first and a last frame."""
    return task.startswith("flf2v")


def task_defaults(task: str, *, video_size: tuple[int, int] | None = None) -> TaskDefaults:
    """What steps, shift, guidance, length and negative prompt are when they are not given.

    `video_size` is (height, width). Source: the task tables of Wan 2.1 and 2.2; image-to-video at 480p has shift 3.
    """
    defaults = VARIANTS[task]
    if task.startswith(("i2v", "camera")) and defaults.boundary is None and video_size in _SIZES_480:
        return dataclasses.replace(defaults, flow_shift=3.0)
    return defaults
