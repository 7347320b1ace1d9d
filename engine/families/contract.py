"""What a family owes: the page to read first.

A family is a folder of plain functions, always in the same files: `options detect text vae model keys sample tiny
bench`, `image` where it has an image encoder, `pocket` where it has a small trained model. There is no base class and
nothing to override; a file is imported when it is needed (`families.part("wan", "vae")`), so caching never loads the
DiT and training never loads the text encoder. The Protocols below are those files: attributes are module constants,
methods are module functions. `FILES` maps file names to them, and a test compares every family. A family may give a
function further keyword arguments with defaults: a function of its `options.py` fills them, which each Protocol names.
No task knows an option that only a family has.

    caching      vae.load, image.load            -> vae.training_samples  -> one cache file a sample
                 text.load                       -> text.encode           -> one cache file a caption
    training     a batch of both                 -> model.cond_from_batch -> model.velocity
    generation   sample.texts, text.encode;  sample.prepare with VAE and image encoder, before the DiT is loaded;
                 sample.video_latents with the DiT, which calls the `denoise` that is handed in once or several times;
                 vae.decode_frames

The same tensors, by the names that caches have, go into `model.cond_from_batch` in training and in generation.

Tensor suffixes: B batch, C channels, T latent frames, F pixel frames, H W height and width (of latents in latents),
L tokens, D width. sigma is 0 (clean) … 1 (noise); a timestep is 0..1000 and appears only where a model wants it.
Pixels say their range. `shapes` is {name: shape} as a file has them; `cond` is a dict that the loop only moves to the
device: tensors, lists of tensors, plain Python values. `files` maps names of options ("vae", "t5") to paths. The other
things that change hands (clips, requests, experts …) are in `values.py`.

What is not here, because no family implements it: LoRA, block streaming, checkpointing, compile, fp8 (they act on
`model.blocks`), samplers and guidance (they get a velocity function), the loss and its sampling of sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .values import BenchModel, BenchVae, Clips, Defaults, Denoise, Encoders, Files, Request, Shapes, Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..contract.job import Job
    from ..parts.arrangement import Rows
    from ..parts.latent_colours import LatentColours
    from ..parts.workload import VaeWork, Work


class Options(Protocol):
    """options.py: variants, own options, own defaults. Standard library only; ComfyUI and --help read it.

    Its functions turn a job into what the other files take. `line` is a prompt line (engine/sampling/prompts.py),
    whose values are None where it says nothing. It may also have `rules(job)`, what its options demand of each other
    and of model files; `resolved(job)`, values by option for what a job leaves open (None) and no prompt line changes;
    `further_experts(job)`, the DiTs for higher noise levels beside `--dit`, ascending; `notes(job)`, sentences that
    warn of what is allowed but hardly meant;
    `NODE_NAME`, what it is called in the ids of its ComfyUI nodes, for ever (else its folder's name in capitals);
    `SCRIPTS` (musubi-tuner's script names -> verbs) and `EXAMPLES` (verb -> an example's options, for help and pages).
    """

    TITLE: str
    ARCHITECTURE: str  # in cache file names: "wan"
    ARCHITECTURE_FULL: str  # in cache metadata
    NATIVE_FPS: int  # what clips are resampled to
    SIZE_STEP: int  # pixels: heights and widths are multiples of it
    LATENT_SCALE: float  # cached latents times this are what the DiT takes
    NETWORK_MODULE: str  # musubi-tuner's name of the LoRA module, for the LoRA's metadata
    LORA_FORMAT: str  # the names that ComfyUI's loader takes whole: "default" or "other" (lora/formats.py)
    MODELSPEC_ARCHITECTURE: str
    MODELSPEC_IMPLEMENTATION: str
    TEXT_FILES: tuple[str, ...]  # options that name the text encoders, all needed
    IMAGE_FILES: tuple[str, ...]  # options that name the image encoder; empty: there is none, and no image.py
    LIGHTER: Mapping[str, Sequence[Mapping[str, Any]]]  # "text", "vae" -> options that take less memory, best first
    PROMPT_LETTERS: Mapping[str, str]  # letters of prompt lines that mean something else in this family
    SECTIONS: Mapping[str, tuple[type, ...]]  # its part of each command: verb -> option sections (contract/commands.py)

    def files(self, job: Job) -> dict[str, str | None]:
        """Every model file of this command by the name of its option; None where none is given."""

    def vae_arguments(self, job: Job) -> dict[str, Any]:
        """For vae.load."""

    def text_arguments(self, job: Job) -> dict[str, Any]:
        """For text.load. All but "tokenizer" change the result, so caches are made anew when they change."""

    def dit_arguments(self, job: Job) -> dict[str, Any]:
        """For model.load: "task", and what else this family's takes."""

    def latent_settings(self, job: Job) -> dict[str, Any]:
        """For vae.training_samples and vae.sample_count: what is cached. Caches are made anew when they change."""

    def takes_controls(self, job: Job) -> bool:
        """Whether cached clips bring their controls along."""

    def conditioning_arguments(self, job: Job) -> dict[str, Any]:
        """For model.cond_from_batch and model.check_cache."""

    def decode_arguments(self, job: Job) -> dict[str, Any]:
        """For vae.decode_frames."""

    def generation_defaults(self, job: Job, line: Any) -> Defaults:
        """What a generation does where neither the line nor a flag says it."""

    def request_settings(self, job: Job, line: Any) -> dict[str, Any]:
        """`Request.settings` of one prompt line. OptionError when the family cannot make such a video."""

    def latent_size(self, job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """(T, H, W) of the latents that the DiT works on at once for a video of this size in pixels."""

    def dit_work(self, job: Job, config: Any, latent_size: tuple[int, int, int]) -> Work:
        """How many tokens the blocks of a DiT of this `config` (detect.py) work on: for the memory planner."""

    def vae_work(self, job: Job, *, decoding: bool) -> VaeWork:
        """How the VAE goes through a clip: for the memory planner."""

    def trim_tail_frames(self, job: Job) -> int:
        """How many frames are left out at the end of a video."""

    def frame_step(self, job: Job) -> int:
        """Videos have a multiple of so many frames, and one; `job` is one that generates."""

    def sample_options(self, job: Job) -> dict[str, Any]:
        """What `generate` is told for the samples of this training, by option, where that is not `SAMPLE_DEFAULTS`
        (contract/options/saving.py) nor what the same option says here. None: left to the family."""


class Detect(Protocol):
    """detect.py: what a checkpoint is, from names, shapes and file metadata alone. Reads no weights."""

    def detect(self, shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
        """The variant of a DiT in any public layout. WeightsError names what the file looks like instead."""

    def fullest(self) -> Any:
        """`config` of a public size with every module that any variant has: for tools that have no checkpoint."""

    def role_of(self, shapes: Shapes) -> str | None:
        """One of "dit", "vae", "text-encoder", "clip-vision", "lora", another family's kind; None if unknown."""

    def check_task(self, variant: Any, task: str) -> None:
        """WeightsError when this checkpoint cannot do the job's task: says which --task would fit."""


class Text(Protocol):
    """text.py: captions to conditioning."""

    def load(self, files: Files, *, device: torch.device | str) -> Any:
        """The text encoders in `options.TEXT_FILES` with their tokenizers, found offline first. WeightsError.

        Further arguments: `options.text_arguments`.
        """

    def encode(self, encoder: Any, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption the tensors of its cache file, by musubi-tuner's names without number format.

        No batch dimension; a name that begins with `varlen_` is of a length of its own.
        """


class Image(Protocol):
    """image.py: the image encoder, in families that have one. What it gives is the family's own business."""

    def load(self, files: Files, *, device: torch.device | str) -> Any:
        """The image encoder in `options.IMAGE_FILES`. WeightsError for another kind of file."""


class Vae(Protocol):
    """vae.py: clips to latents, latents to frames."""

    LATENT_CHANNELS: int
    TIME_STRIDE: int
    SPACE_STRIDE: int
    CACHE_DTYPE: torch.dtype  # of cached latents, unless --vae_dtype says otherwise
    COLOURS: LatentColours  # of latents as the DiT takes them, for previews

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """The number format that this VAE is safe and fast in on this device."""

    def load(self, path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> Any:
        """The VAE, from any public layout. WeightsError for another kind of file. Also: `options.vae_arguments`."""

    def encode(self, vae: Any, clip_BCFHW: Tensor) -> Tensor:
        """RGB in -1..1, F = TIME_STRIDE * n + 1, to latents_BCTHW as the DiT takes them, the same every time."""

    def decode(self, vae: Any, latents_BCTHW: Tensor) -> Tensor:
        """The reverse: RGB in -1..1, clamped, [B, C, F, H, W]."""

    def decode_frames(self, vae: Any, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """`decode` in pieces along F, in order, for bounded memory. Also: `options.decode_arguments`."""

    def training_samples(
        self, vae: Any, clips: Clips, *, dtype: torch.dtype, image_encoder: Any = None
    ) -> list[list[dict[str, Tensor]]]:
        """For each clip its training samples: the tensors of a cache file each, by musubi-tuner's names without
        number format and without batch dimension, "latents" among them, on any device.

        Latents are of `dtype`. `image_encoder` is what image.load gave, None where the job names none.
        Further arguments: `options.latent_settings`. DataError for a clip that cannot be made into a sample.
        """

    def sample_count(self, frames: int, *, window: int) -> int | None:
        """How many samples a clip of so many frames makes, which are then numbered; None: one, not numbered.

        Also: `options.latent_settings`. DataError for a clip that is too short for any.
        """


class Model(Protocol):
    """model.py: the DiT.

    It may also have `check_values(values, task=…)`, where shapes alone cannot tell whether a cache is for this task: as
    `check_cache`, of the tensors that `CHECKED_VALUES` names, which should be small, as far as the cache has them. And
    `CACHED_STATES`, the name of the text's states in a cache; their width is the `text_dim` of `variant.config`.
    """

    def build(self, config: Any, *, device: torch.device | str = "meta", dtype: torch.dtype = ...) -> nn.Module:
        """A frozen model of this configuration; on "meta" names and shapes only, elsewhere with weights unset."""

    def load(
        self,
        path: str | Path,
        *,
        task: str | None,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        transform: Callable[[str, Tensor], Tensor] | None = None,
        attention_backend: str = "auto",
        role: str = "--dit",
    ) -> nn.Module:
        """A frozen model with `.variant` and `.dtype`, what it computes in. `role` is the flag that names the file.

        `transform(name, tensor)` sees each weight first: LoRA merging. `parts.weights.load_into` calls it, and lets it
        choose what is read at all.
        """

    def blocks(self, dit: nn.Module) -> Sequence[nn.Module]:
        """The blocks in the order in which they run. They take and return plain tensors (or None).

        A block may have `TOKENWISE`: names of its methods that treat each token by itself, which may be run in
        pieces (memory/pieces.py). They take tensors [B, L, …] and give one or several; what `LAST` names of
        them gives what the block gives.
        """

    def velocity(self, dit: nn.Module, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        """Noise - clean, float32, of x's shape (without channels that conditioning adds). timestep_B in 0..1000.

        Must not wait for the device: no `.item()`, no branch on values.
        """

    def cond_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """`cond` of a batch of cached tensors: B first, names without number format, `varlen_x` as a list "x".

        Also: `options.conditioning_arguments`.
        """

    def check_cache(self, shapes: Shapes) -> str:
        """What a cache file of these tensors (named as in `cond_from_batch`, without B) lacks for this job, with the
        flags that add it; "" when it will do. Also: `options.conditioning_arguments`."""


class Keys(Protocol):
    """keys.py: weight names. Pure string functions, used for modules of LoRA files too."""

    LORA_BLOCKS: tuple[str, ...]  # class names of the blocks that a LoRA adapts
    LORA_EXCLUDE: str  # regular expression, full match on the module path

    def dit_name(self, name: str) -> str | None:
        """Our name, which is the original checkpoint's, for a name in any public layout; None drops it."""

    def arrange(self, shapes: Shapes) -> Mapping[str, tuple[Rows, ...]]:
        """For a file's names: our name -> the rows that its tensor is made of (parts/weight_views.py)."""

    def diffusers_parts(self, path: str) -> tuple[str, ...]:
        """diffusers' layers that make up a module of ours, from the first row on: one where it has the same layer.

        Of several, each but the last has as many rows as the module has columns.
        """

    def lora_pieces(self, name: str) -> tuple[str, ...]:
        """Our modules, from the first row on, that one layer of another layout holds, for LoRAs of that layout.

        `name` has every dot turned into an underscore, as kohya writes it. () where `dit_name` and `diffusers_parts`
        say all there is to say, and for a name that is unknown.
        """

    def is_fp8_weight(self, name: str) -> bool:
        """Whether this layer may be kept in fp8."""


class Sample(Protocol):
    """sample.py: how a whole video comes about.

    It may also have `check_request(request, dit)`: OptionError for what this DiT, still without weights, cannot do.
    """

    def texts(self, request: Request) -> list[str]:
        """Every text of a request that has to be encoded; the negative prompt only where guidance needs it."""

    def prepare(self, request: Request, encoders: Encoders) -> dict[str, Any]:
        """What the pictures and videos of a request become, in main memory. The DiT is not loaded yet."""

    def video_latents(
        self,
        dit: nn.Module,
        request: Request,
        *,
        texts: Mapping[str, Mapping[str, Tensor]],
        inputs: Mapping[str, Any],
        denoise: Denoise,
        device: torch.device,
    ) -> Tensor:
        """Clean latents_BCTHW of one video, or of the one frame that is wanted.

        `texts` holds text.encode's result for each of `texts(request)`, `inputs` what `prepare` gave, in main memory.
        """


class Tiny(Protocol):
    """tiny.py: small models in the files and under the names of the real ones, for the demo and the tests.

    Where the demo's dataset file needs more for this family: `DATASET_KEYS`. Where a LoRA cannot teach the DiT a clip
    by heart, so that the demo does without this proof: `LEARNS_BY_HEART = False`.
    """

    def write_tiny_models(self, folder: str | Path, *, seed: int = 42) -> dict[str, Path]:
        """Write all files into `folder`, made if missing; the same seed gives the same weights. Paths by option."""

    def tiny_model_options(self, folder: str | Path) -> dict[str, dict[str, Any]]:
        """For each verb what its job file must say to use the models in `folder`."""


class Pocket(Protocol):
    """pocket.py, of a family with a small model that was trained: what the demo runs on instead of `tiny`'s.

    Its files lie in the demo's own folder, with clips of something that the model has never seen. Values only. It may
    also have, by path in that folder, `BESIDE`: what the model files need beside them, and `FIRST_FRAMES`: a picture
    for each prompt, that its video begins with. Where the demo's dataset file needs more: `DATASET_KEYS`, as in `Tiny`.
    """

    FILES: Mapping[str, str]
    """Names of the model files, by option."""
    CONCEPT: str
    """What the clips show and the model has never seen, in the plural; with `_` their folder beside the files."""
    DATASET: Mapping[str, Any]
    """The dataset file's [general] as the model needs it."""
    TRAINING: Mapping[str, Any]
    """Options with which a LoRA learns these clips."""
    GENERATION: Mapping[str, Any]
    """Options with which the model generates well."""
    PROMPTS: tuple[str, ...]
    """What shows that the LoRA has learned: the demo generates each with it and without."""

    def pocket_model_options(self, folder: str | Path) -> dict[str, dict[str, Any]]:
        """For each verb what its job file must say to use the models in `folder`."""


class Bench(Protocol):
    """bench.py: what `bench` measures, and inputs of random numbers for it, in the forms of public files and caches."""

    MODELS: tuple[BenchModel, ...]
    VAE: BenchVae

    def write_encoders(self, folder: Path, config: Any) -> dict[str, Path]:
        """Text and image encoders of few layers, as wide as a DiT of this `config` wants them. Paths by option."""

    def latents(self, config: Any, *, size_THW: tuple[int, int, int], window: int) -> dict[str, Tensor]:
        """The tensors of one training sample, as `vae.training_samples` names them."""

    def caption(self, config: Any) -> dict[str, Tensor]:
        """The tensors of one caption, as `text.encode` names them."""


FILES: dict[str, type] = {
    "options": Options,
    "detect": Detect,
    "text": Text,
    "vae": Vae,
    "model": Model,
    "keys": Keys,
    "sample": Sample,
    "tiny": Tiny,
    "bench": Bench,
}
OPTIONAL_FILES: dict[str, type] = {"image": Image, "pocket": Pocket}
