"""Wan's options about pictures, and what each task needs of them and has no use for. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...contract.errors import OptionError
from ...contract.schema import Section, opt
from .one_frame import MOST_CONTROLS, parse
from .variants import CAMERA_POSES, VARIANTS, takes_two_images

_MASKS = {"control_image_mask_path": "Wan models have no place for masks of control images"}


@dataclass(frozen=True, kw_only=True)
class WanImageCaching(Section, title="Images", late=True):
    """What image-to-video models need in the caches."""

    i2v: bool = opt(False, "Cache the first frame as the image that a clip starts from.", advanced=True)
    clip: str | None = opt(
        None, "CLIP vision file, for Wan 2.1 image-to-video; implies --i2v.", file_kind="clip_vision", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    one_frame: bool = opt(
        False, "Cache for one-frame training: an image beside control images, each at a place in time "
        "(fp_1f_target_index and fp_1f_clean_indices of the dataset file).", advanced=True,
    )  # fmt: skip
    flf2v: bool = opt(
        False, "Cache the first and the last frame as the images that a clip runs between, for flf2v models.",
        advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.one_frame and self.clip is None:
            raise OptionError(
                "--one_frame needs CLIP features of the control images.",
                hint="Add --clip with the CLIP vision file.",
                names=("one_frame", "clip"),
            )
        if self.one_frame and self.flf2v:
            raise OptionError(
                "--one_frame and --flf2v are two kinds of cache.",
                hint="Leave out --flf2v: an flf2v model takes one-frame caches with two control images.",
                names=("one_frame", "flf2v"),
            )


@dataclass(frozen=True, kw_only=True)
class WanImageTraining(Section, title="Images", late=True):
    """What samples of image-to-video models need."""

    clip: str | None = opt(
        None, "CLIP vision file, for samples of Wan 2.1 image-to-video.", file_kind="clip_vision", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    one_frame: bool = opt(False, "Make samples as single frames.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class WanInputs(Section, title="Images and control", late=True, accepted=_MASKS):
    """Pictures and videos that a generation starts from."""

    image_path: str | None = opt(None, "Image that the video starts from.", file_kind="image", metavar="FILE")
    end_image_path: str | None = opt(
        None, "Image that the video ends with.", file_kind="image", advanced=True, metavar="FILE"
    )
    clip: str | None = opt(
        None, "CLIP vision file, for Wan 2.1 image-to-video.", file_kind="clip_vision", metavar="FILE"
    )
    video_path: str | None = opt(
        None, "Video (or folder of images) that the new one is made from: see --strength.", file_kind="video",
        advanced=True, metavar="FILE",
    )  # fmt: skip
    control_path: str | None = opt(
        None, "Control video, or a folder of images, for Fun-Control and VACE models; for VACE also a video to change: "
        "see --src_mask.", file_kind="video", aliases=("src_video",), advanced=True, metavar="PATH",
    )  # fmt: skip
    reference_image_path: str | None = opt(
        None, "Image of who or what appears in the video, for "
              "Fun-Control V1.1 models; CLIP gets it instead of the "
              "start image.", file_kind="image", advanced=True, metavar="FILE",
    )  # fmt: skip
    one_frame_inference: str | None = opt(
        None, "Make one frame only, such as target_index=1,control_index=0;2.", advanced=True, metavar="SETTINGS"
    )
    control_image_path: tuple[str, ...] = opt(
        (), "Control images of one-frame inference.", file_kind="image", advanced=True, metavar="FILE"
    )
    control_image_mask_path: tuple[str, ...] = opt(
        (), "Masks of the control images.", file_kind="image", advanced=True, metavar="FILE"
    )
    trim_tail_frames: int = opt(
        0, "Drop this many frames at the end of the video; 3 is usual where an i2v model gets an end image.", low=0,
        unit="frames", advanced=True,
    )  # fmt: skip
    strength: float = opt(
        0.8, "How much of --video_path is remade: 1 is all of it, 0.1 hardly anything.", low=0, high=1, advanced=True
    )
    src_mask: str | None = opt(
        None, "Mask of --control_path for VACE models, a video, an "
              "image or a folder of images: white is generated "
              "anew, black is kept.", file_kind="video", advanced=True, metavar="PATH",
    )  # fmt: skip
    src_ref_images: tuple[str, ...] = opt(
        (), "Images of who or what appears in the video, for VACE models.", file_kind="image", advanced=True,
        metavar="FILE",
    )  # fmt: skip
    vace_strength: float = opt(
        1.0, "How much VACE's control and reference images count; 0 is not at all.", low=0, advanced=True
    )
    camera_pose: str | None = opt(
        None, "What the camera does, for Fun-Control models with a camera.", choices=tuple(CAMERA_POSES), advanced=True
    )
    camera_speed: float = opt(1.0, "Speed of the camera: 2 moves it twice as far.", low=0, advanced=True)
    control_camera_txt: str | None = opt(
        None, "File with a line per frame that says where the "
              "camera is, in VideoX-Fun's format; replaces "
              "--camera_pose.", file_kind="camera", advanced=True, metavar="FILE",
    )  # fmt: skip


FLAGS = {
    "image_path": "--image_path",
    "end_image_path": "--end_image_path",
    "video_path": "--video_path",
    "control_path": "--control_path",
    "reference_image_path": "--reference_image_path",
    "control_image_path": "--control_image_path",
    "one_frame": "--one_frame_inference",
    "src_mask": "--src_mask",
    "src_ref_images": "--src_ref_images",
    "camera_pose": "--camera_pose",
    "control_camera_txt": "--control_camera_txt",
}
_NO_FILES = ("one_frame", "camera_pose")


def settings_of(inputs: WanInputs, line: Any, *, task: str, has_clip: bool) -> dict[str, Any]:
    """What one video starts from: the prompt line's files or the flags', as Path, and places in time, read.

    Raises OptionError for files that are not there, for what the task lacks and for what it would ignore.
    """
    places = line.one_frame or inputs.one_frame_inference
    settings = {
        "task": task,
        "image_path": _path(line.image_path or inputs.image_path),
        "end_image_path": _path(line.end_image_path or inputs.end_image_path),
        "video_path": _path(inputs.video_path),
        "strength": inputs.strength,
        "control_path": _path(line.control_video_path or inputs.control_path),
        "reference_image_path": _path(inputs.reference_image_path),
        "control_image_path": tuple(map(Path, line.control_image_path or inputs.control_image_path)),
        "one_frame": parse(places, where="--one_frame_inference") if places else None,
        "src_mask": _path(inputs.src_mask),
        "src_ref_images": tuple(map(Path, inputs.src_ref_images)),
        "vace_strength": inputs.vace_strength,
        "camera_pose": inputs.camera_pose,
        "camera_speed": inputs.camera_speed,
        "control_camera_txt": _path(inputs.control_camera_txt),
    }
    if line.control_image_mask_path:
        raise OptionError(f"{line.where}: {_MASKS['control_image_mask_path']} (--cim).", "Leave it out.")
    problems = list(_problems(settings))
    sees_image = any(settings[name] is not None for name in ("image_path", "reference_image_path", "one_frame"))
    if sees_image and VARIANTS[task].image_encoder and not has_clip:
        problems.append((f"--task {task} sees its image through CLIP, and there is no --clip", "Add --clip."))
    if problems:
        problem, hint = problems[0]
        raise OptionError(f"{problem}." if line.where.startswith("--") else f"{line.where}: {problem}.", hint)
    return settings


def _path(given: str | None) -> Path | None:
    return None if given is None else Path(given)


def _problems(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    task, given = settings["task"], {name for name in FLAGS if settings[name] not in (None, ())}
    for name in sorted(given.difference(_NO_FILES)):
        paths = settings[name] if isinstance(settings[name], tuple) else (settings[name],)
        for path in paths:
            if not Path(path).exists():
                yield f"{FLAGS[name]}: there is no file {path}", "Correct the path."
    for name in sorted(given & _useless(task, given)):
        yield f"{FLAGS[name]} means nothing to --task {task}", f"Leave it out, or choose {_WHO_TAKES[name]}."
    for name in _needed(task, given):
        yield f"--task {task} needs {FLAGS[name]}", f"Add {FLAGS[name]}."
    if {"camera_pose", "control_camera_txt"} <= given:
        yield "--camera_pose and --control_camera_txt both say what the camera does", "Leave one of them out."
    if "one_frame" in given:
        yield from _one_frame_problems(settings)


def _useless(task: str, given: set[str]) -> set[str]:
    kind, useful = VARIANTS[task], {"video_path"}
    if kind.takes_context:
        useful |= {"control_path", "src_mask", "src_ref_images", "image_path", "end_image_path"}
    elif kind.takes_camera:
        useful |= {"camera_pose", "control_camera_txt", "image_path"}
    elif kind.takes_control:
        useful |= {"control_path", "reference_image_path", "image_path"}
        useful |= {"end_image_path"} if "image_path" in given else set()
    elif kind.takes_image:
        useful |= {"image_path", "end_image_path"}
        useful |= {"one_frame"} if kind.image_encoder else set()
    if useful & {"one_frame"} & given:
        useful |= {"control_image_path"}
        useful -= {"video_path"} | (set() if takes_two_images(task) else {"end_image_path"})
    return set(FLAGS) - useful


_WHO_TAKES = {
    "image_path": "an i2v task",
    "end_image_path": "an i2v task with --image_path, or flf2v-14B",
    "control_path": "a task that ends in -FC, or a vace task",
    "reference_image_path": "a task that ends in -FC (with a vace task: --src_ref_images)",
    "control_image_path": "i2v-14B or flf2v-14B with --one_frame_inference",
    "one_frame": "i2v-14B or flf2v-14B",
    "video_path": "to make a whole video",
    "src_mask": "a vace task",
    "src_ref_images": "a vace task (with a task that ends in -FC: --reference_image_path)",
    "camera_pose": "a camera task",
    "control_camera_txt": "a camera task",
}


def _needed(task: str, given: set[str]) -> list[str]:
    kind = VARIANTS[task]
    if "one_frame" in given:
        return [] if given & {"image_path", "control_image_path"} else ["control_image_path"]
    needed = {
        "image_path": kind.takes_image or (kind.takes_control and task.startswith("i2v")),
        "end_image_path": takes_two_images(task),
        "camera_pose": kind.takes_camera and "control_camera_txt" not in given,
        "control_path": kind.takes_control or "src_mask" in given,
    }
    return [name for name, is_needed in needed.items() if is_needed and name not in given]


def _one_frame_problems(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    places, paths = settings["one_frame"], settings["control_image_path"]
    count = len(paths) or 1  # without control images the start image is one
    if count > MOST_CONTROLS:
        yield f"{count} control images are more than {MOST_CONTROLS}", "Give one or two."
    if len(places.control_indices) != count:
        yield (
            f"control_index names {len(places.control_indices)} places for {count} control images",
            "Give a place for each, such as control_index=0;2.",
        )
    if len({places.target_index, *places.control_indices}) <= count:
        yield "two frames have the same place in time", "Give target_index and each control_index a place of its own."
    has_two = count == 2 or (settings["image_path"] is not None and settings["end_image_path"] is not None)
    if takes_two_images(settings["task"]) and not has_two:
        yield f"--task {settings['task']} sees two images", "Give two --control_image_path, or add --end_image_path."
