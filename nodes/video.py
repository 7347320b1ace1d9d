"""VIDEO in and out: a file from an allowed folder as ComfyUI's VIDEO, and a VIDEO saved and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.contract.errors import OptionError
from . import host, last_shown, manifest, paths
from .sockets import STRING, VIDEO
from .spec import NONE, Call, Node, Outcome, Result, Socket, Widget

FORMATS = ("auto", "mp4", "mkv", "webm")


def _load(call: Call) -> Outcome:
    name = call.inputs["video"]
    if name == NONE:
        raise OptionError("No video is chosen.", hint="Choose one in video.", names=("video",))
    file = paths.named(name)
    start_s, length_s = call.inputs["start"], call.inputs["length"]
    video = host.video_of(file)
    if start_s or length_s:
        video = host.trimmed(video, start_s, length_s)
    facts = host.facts_of(video)
    return Outcome(values=(video, facts.fps, facts.frames, facts.width, facts.height, str(file)))


def _load_fingerprint(inputs: Mapping[str, Any]) -> str:
    return str(manifest.stamp_of(paths.named(str(inputs.get("video")))))


def _save(call: Call) -> Outcome:
    video = call.inputs["video"]
    metadata = {"prompt": call.prompt, "workflow": call.workflow}
    paths.prefix(call.inputs["filename_prefix"], "filename_prefix")
    saved = host.save_video(
        video, call.inputs["filename_prefix"], call.inputs["format"],
        metadata={key: value for key, value in metadata.items() if value is not None},
    )  # fmt: skip
    last_shown.keep(call, saved.shown)
    return Outcome(values=(video, str(saved.path)), ui=saved.shown)


def nodes() -> list[Node]:
    return [
        Node(
            name="VideoInput", title="Video Input", group="Video", execute=_load, fingerprint=_load_fingerprint,
            help="A video from an allowed folder, whole or in part.",
            inputs=(
                Widget(
                    id="video", kind="choice", default=NONE, listing=paths.video_files,
                    help="From ComfyUI's datasets, input and output folders, and the folders allowed on the server.",
                ),
                Widget(
                    id="start", kind="float", default=0.0, low=0, high=100000, step=0.1,
                    help="Where to begin, in seconds.",
                ),
                Widget(
                    id="length", kind="float", default=0.0, low=0, high=100000, step=0.1,
                    help="How much to take, in seconds. 0: to the end.",
                ),
            ),
            results=(
                Result(id="video", type=VIDEO, help="For a generator, or any node that takes a VIDEO."),
                Result(id="fps", type="FLOAT", help="Frames per second."),
                Result(id="frames", type="INT", help="How many frames."),
                Result(id="width", type="INT", help="In pixels."),
                Result(id="height", type="INT", help="In pixels."),
                Result(id="path", type=STRING, help="The file."),
            ),
            aliases=("load video",),
        ),
        Node(
            name="VideoOutput", title="Video Output", group="Video", execute=_save, is_output=True,
            help="Saves a VIDEO to the output folder, with the workflow inside, and shows it.",
            inputs=(
                Socket(id="video", types=(VIDEO,), help="The video to save."),
                Widget(
                    id="filename_prefix", kind="text", default="video/musubi", label="filename prefix",
                    help="Where in the output folder it goes, and how its name begins.",
                ),
                Widget(
                    id="format", kind="choice", default="auto", choices=FORMATS,
                    help="File format. auto: that of the video.",
                ),
            ),
            results=(
                Result(id="video", type=VIDEO, help="The same video."),
                Result(id="path", type=STRING, help="The file that was written."),
            ),
            aliases=("save video", "preview video"),
        ),
    ]  # fmt: skip
