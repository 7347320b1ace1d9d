"""FramePack's own options, section by section. Standard library only. `options.py` turns them into what files take."""

from __future__ import annotations

from dataclasses import dataclass

from ...contract.errors import OptionError
from ...contract.options import Network, Output, Prompting
from ...contract.schema import Section, opt, redefault, require
from ...parts.hunyuan_options import TextEncoders
from .sections import WINDOW

NATIVE_FPS = 30
NETWORK_MODULE = "networks.lora_framepack"


# -------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, kw_only=True)
class FramePack(Section, title="FramePack"):
    """Which FramePack it is; no file says so itself."""

    f1: bool = opt(False, "The model is FramePack F1, which makes a video forward in time.")


@dataclass(frozen=True, kw_only=True)
class FramePackWindow(FramePack, title="FramePack"):
    """Which FramePack it is, and how its sections are made and decoded."""

    latent_window_size: int = opt(
        WINDOW, "Latent frames in a section; the published models have 9.", low=1, high=1000, advanced=True
    )
    bulk_decode: bool = opt(
        False, "Decode the whole video at once, instead of fading section into section: smoother, more memory."
    )


@dataclass(frozen=True, kw_only=True)
class FramePackTextGeneration(TextEncoders, title="Text encoders"):
    """LLaVA-LLaMA-3 for the details, CLIP-L for the gist."""

    custom_system_prompt: str | None = opt(
        None, "What LLaMA is instructed to look at in a prompt. Default: as in the model's training.",
        advanced=True, metavar="TEXT",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FramePackImage(Section, title="Image encoder"):
    """SigLIP, through which the model sees the start image."""

    image_encoder: str | None = opt(
        None, "SigLIP: a single file such as sigclip_vision_patch14_384.safetensors, or a folder.",
        file_kind="clip_vision", metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FramePackImageCaching(FramePackImage, title="Image encoder"):
    """SigLIP, through which the model sees the start image."""

    image_encoder: str = require(FramePackImage, "image_encoder")


# ------------------------------------------------------------------------------------------- training and one frame


@dataclass(frozen=True, kw_only=True)
class FramePackNetwork(Network, title="LoRA"):
    """FramePack's LoRA sits in the linear layers of every block."""

    network_module: str = redefault(Network, "network_module", NETWORK_MODULE)


@dataclass(frozen=True, kw_only=True)
class FramePackOneFrame(Section, title="One frame", late=True):
    """Single images instead of videos."""

    one_frame: bool = opt(False, "Make samples as single frames.", advanced=True)


@dataclass(frozen=True, kw_only=True)
class FramePackOneFrameCaching(Section, title="One frame", late=True):
    """Single images instead of videos."""

    one_frame: bool = opt(
        False, "Cache for one-frame training: an image beside control images, each at a place in time "
        "(fp_1f_target_index, fp_1f_clean_indices and fp_1f_no_post of the dataset file).", advanced=True,
    )  # fmt: skip
    one_frame_no_2x: bool = opt(
        False, "With --one_frame: no zeros for the history at 2x, as with no_2x in --one_frame_inference.",
        advanced=True,
    )  # fmt: skip
    one_frame_no_4x: bool = opt(
        False, "With --one_frame: no zeros for the history at 4x, as with no_4x in --one_frame_inference.",
        advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("one_frame_no_2x", "one_frame_no_4x"):
            if getattr(self, name) and not self.one_frame:
                raise OptionError(
                    f"--{name} has no meaning without --one_frame.",
                    hint=f"Add --one_frame, or leave out --{name}.",
                    names=(name, "one_frame"),
                )


# ------------------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, kw_only=True)
class FramePackPrompting(
    Prompting, title="What to generate", accepted={"cpu_noise": "FramePack always draws its noise on the CPU"}
):
    """Prompt, size and the way through the noise. Prompts may change: 0:first part;;;1-2:then;;;-1:the end."""


@dataclass(frozen=True, kw_only=True)
class FramePackLength(Section, title="Length and sections"):
    """A video is made in sections of 36 frames."""

    video_seconds: float = opt(
        5.0, "Length at 30 frames a second, rounded to whole sections.", low=0, high=600, unit="seconds"
    )
    video_sections: int | None = opt(
        None, "Number of sections; takes precedence over --video_seconds.", low=1, high=1000
    )
    latent_paddings: str | None = opt(
        None, "Distance of each section from the start, the last section first, such as 3,2,1,0. Not for F1.",
        advanced=True, metavar="N,N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FramePackOutput(Output, title="Output"):
    """FramePack was trained on 30 frames a second."""

    fps: int = redefault(Output, "fps", NATIVE_FPS)


@dataclass(frozen=True, kw_only=True)
class FramePackInputs(Section, title="Images", late=True):
    """Pictures that a generation starts from and ends with."""

    image_path: str | None = opt(
        None, "Image that the video starts from; sections may have their own: 0:a.png;;;-1:b.png.",
        file_kind="image", metavar="FILE",
    )  # fmt: skip
    end_image_path: str | None = opt(
        None, "Image that the video ends with. Not for F1.", file_kind="image", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class FramePackGuidance(Section, title="Guidance", late=True):
    """How strongly the prompt pulls."""

    embedded_cfg_scale: float = opt(10.0, "Guidance built into the model, which was made for 10.", low=0, high=1000)
    guidance_rescale: float = opt(
        0.0, "Undo the rise in contrast that --guidance_scale brings, 0 to 1.", low=0, high=1, advanced=True
    )
    rope_scaling_factor: float = opt(
        0.5, "Scale places in height and width, for high resolutions.", low=0.01, high=100, advanced=True
    )
    rope_scaling_timestep_threshold: int | None = opt(
        None, "Scale them at this timestep (0 to 1000) and above; about 800 is a good start. Default: never.", low=0,
        high=1000, advanced=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FramePackSingle(Section, title="One frame", late=True):
    """Single images instead of videos."""

    one_frame_inference: str | None = opt(
        None, "Make one frame only, such as target_index=1,control_index=0;10.", advanced=True, metavar="SETTINGS"
    )
    one_frame_auto_resize: bool = opt(
        False, "Take the shape of the first control image, at about the area of --video_size.", advanced=True
    )
    control_image_path: tuple[str, ...] = opt(
        (),
        "Control images; where one has alpha, only its opaque parts count.",
        file_kind="image",
        advanced=True,
        metavar="FILE",
    )
    control_image_mask_path: tuple[str, ...] = opt(
        (), "Masks of the control images, white where they count.", file_kind="image", advanced=True, metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class FramePackMagCache(Section, title="MagCache", late=True):
    """Leaving the model's blocks out in steps that would change little: about twice as fast, slightly different."""

    magcache_mag_ratios: str | None = opt(
        None, "Switch it on with these ratios of magnitudes, step by step; 0 for the "
              "usual ones. Best as many as --infer_steps; otherwise they are spread "
              "over the steps.", advanced=True, metavar="X,X",
    )  # fmt: skip
    magcache_retention_ratio: float = opt(
        0.2, "Share of the steps, at the beginning, that always run.", low=0, high=1, advanced=True
    )
    magcache_threshold: float = opt(
        0.24, "Estimated error up to which steps are skipped: higher is faster.", low=0, high=1000, advanced=True
    )
    magcache_k: int = opt(6, "Skip at most this many steps in a row.", low=0, high=1000, advanced=True)
    magcache_calibration: bool = opt(
        False, "Skip nothing, and print the ratios of this model and prompt for --magcache_mag_ratios.",
        advanced=True,
    )  # fmt: skip
