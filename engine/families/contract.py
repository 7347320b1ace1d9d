"""What a family owes: the page to read first.

A family is a folder of plain functions, always in the same files: `options detect text vae model keys sample tiny
bench`, plus `image` if it has an image encoder and `pocket` if it comes with a small trained model. There is no base
class and nothing to override. A file is imported only when it is needed (`families.part("wan", "vae")`), so caching
never loads the DiT and training never loads the text encoder. Each Protocol below describes one of these files: its
attributes are module constants, its methods module functions. `FILES` maps file names to Protocols, and a test holds
every family to them. A family may add keyword arguments, with defaults, to a function; a function in its `options.py`
supplies them, and the Protocol says which. So no task knows an option that only one family has.

    caching      vae.load, image.load            -> vae.training_samples  -> one cache file a sample
                 text.load                       -> text.encode           -> one cache file a caption
    training     a batch read from both          -> model.cond_from_batch -> model.velocity
    generation   sample.texts, text.encode;  sample.prepare with VAE and image encoder, before the DiT is loaded;
                 sample.video_latents with the DiT, which calls the `denoise` it is given once or several times;
                 vae.decode_frames

`model.cond_from_batch` gets the same tensors, under their names in the caches, in training and in generation.

Tensor suffixes: B batch, C channels, T latent frames, F pixel frames, H W height and width (of latents in latents),
L tokens, D width. sigma is 0 (clean) … 1 (noise); a timestep is 0..1000 and appears only where a model wants it.
Pixels state their range. `shapes` is {name: shape} as stored in a file. `cond` is a dict of tensors, lists of tensors
and plain Python values, which the loop only moves to the device. `files` maps names of options ("vae", "t5") to paths.
The other values passed around (clips, requests, experts …) are in `values.py`.

Not here, because no family implements it: LoRA, block streaming, checkpointing, compile and fp8 (they act on
`model.blocks`), samplers and guidance (they take a velocity function), the loss and its sampling of sigma.
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
    from ..parts.tokenizers import TokenCount
    from ..parts.workload import VaeWork, Work


class Options(Protocol):
    """options.py: variants, own options, own defaults. Standard library only; ComfyUI and --help read it.

    Its functions turn a job into arguments for the other files. `line` is a prompt line (engine/sampling/prompts.py),
    with None for what it leaves open. Optional:

    - `rules(job)` checks the options against each other and against the model files;
    - `resolved(job)` gives values by option for what the job leaves open (None) and no prompt line changes;
    - `further_experts(job)` lists the DiTs for higher noise levels beside `--dit`, in ascending order;
    - `notes(job)` gives warnings about what is allowed but probably not intended;
    - `NODE_NAME` is the family's name in the ids of its ComfyUI nodes, for ever (else the folder's name in capitals);
    - `SCRIPTS` maps musubi-tuner's script names to verbs;
    - `EXAMPLES` maps verbs to the options of an example, for help and pages.
    """

    TITLE: str
    ARCHITECTURE: str  # in cache file names: "wan"
    ARCHITECTURE_FULL: str  # in cache metadata
    NATIVE_FPS: int  # what clips are resampled to
    SIZE_STEP: int  # pixels: heights and widths are multiples of it
    LATENT_SCALE: float  # cached latents times this are what the DiT takes
    NETWORK_MODULE: str  # musubi-tuner's name of the LoRA module, for the LoRA's metadata
    LORA_FORMAT: str  # the naming that ComfyUI's loader reads completely: "default" or "other" (lora/formats.py)
    MODELSPEC_ARCHITECTURE: str
    MODELSPEC_IMPLEMENTATION: str
    TEXT_FILES: tuple[str, ...]  # options that name the text encoders, all needed
    IMAGE_FILES: tuple[str, ...]  # options that name the image encoder; empty if there is none (and no image.py)
    LIGHTER: Mapping[str, Sequence[Mapping[str, Any]]]  # "text", "vae" -> options that save memory, best first
    PROMPT_LETTERS: Mapping[str, str]  # prompt-line letters with another meaning in this family
    SECTIONS: Mapping[str, tuple[type, ...]]  # verb -> the option sections it adds (contract/commands.py)

    def files(self, job: Job) -> dict[str, str | None]:
        """This command's model files by the name of their option; None for one that is not given."""

    def vae_arguments(self, job: Job) -> dict[str, Any]:
        """Further arguments for vae.load."""

    def text_arguments(self, job: Job) -> dict[str, Any]:
        """Further arguments for text.load. All but "tokenizer" change the result: caches are remade when they
        change."""

    def dit_arguments(self, job: Job) -> dict[str, Any]:
        """Arguments for model.load: "task", and whatever else this family's takes."""

    def latent_settings(self, job: Job) -> dict[str, Any]:
        """Further arguments for vae.training_samples and `cut_clip`. Caches are remade when they change."""

    def cut_clip(self, frames: int, *, window: int) -> tuple[int, int] | None:
        """What a clip of `frames` is cut into: frames of a sample, and how many samples, whose cache files are then
        numbered. None: the clip is one sample, not numbered. `window`: the dataset's fp_latent_window_size.

        Also: `latent_settings`. DataError for a clip that is too short for any.
        """

    def takes_controls(self, job: Job) -> bool:
        """Whether clips are cached together with their controls."""

    def conditioning_arguments(self, job: Job) -> dict[str, Any]:
        """Further arguments for model.cond_from_batch and model.check_cache."""

    def decode_arguments(self, job: Job) -> dict[str, Any]:
        """Further arguments for vae.decode_frames."""

    def generation_defaults(self, job: Job, line: Any) -> Defaults:
        """What applies where neither the prompt line nor a flag says otherwise."""

    def request_settings(self, job: Job, line: Any) -> dict[str, Any]:
        """`Request.settings` for one prompt line. OptionError if the family cannot make such a video."""

    def latent_size(self, job: Job, *, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """(T, H, W) of the latents that the DiT processes at once for a video of this size in pixels."""

    def dit_work(self, job: Job, config: Any, latent_size: tuple[int, int, int]) -> Work:
        """How many tokens the blocks of a DiT of this `config` (detect.py) process: for the memory planner."""

    def vae_work(self, job: Job, *, decoding: bool) -> VaeWork:
        """How the VAE works through a clip: for the memory planner."""

    def trim_tail_frames(self, job: Job) -> int:
        """How many frames to drop at the end of a video."""

    def frame_step(self, job: Job) -> int:
        """Videos have n times this many frames, plus one. `job` is a generation."""

    def sample_options(self, job: Job) -> dict[str, Any]:
        """Options of `generate` for this training's samples, where they differ from `SAMPLE_DEFAULTS`
        (contract/options/saving.py) and from the training's option of that name. None: left to the family."""


class Detect(Protocol):
    """detect.py: what a checkpoint is, from names, shapes and file metadata alone. Reads no weights."""

    def detect(self, shapes: Shapes, metadata: Mapping[str, str], *, source: str = "This file") -> Variant:
        """The variant of a DiT in any public layout. WeightsError, saying what the file looks like instead."""

    def fullest(self) -> Any:
        """A `config` of a public size with every module that any variant has, for tools without a checkpoint."""

    def role_of(self, shapes: Shapes) -> str | None:
        """One of "dit", "vae", "text-encoder", "clip-vision", "lora", another family's kind; None if unknown."""

    def check_task(self, variant: Any, task: str) -> None:
        """WeightsError if this checkpoint cannot do the job's task, saying which --task would fit."""


class Text(Protocol):
    """text.py: captions to conditioning."""

    def load(self, files: Files, *, device: torch.device | str) -> Any:
        """The text encoders in `options.TEXT_FILES` with their tokenizers, found offline first. WeightsError.

        Further arguments: `options.text_arguments`.
        """

    def encode(self, encoder: Any, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption the tensors of its cache file, under musubi-tuner's names without the dtype suffix.

        No batch dimension. The length of a tensor whose name begins with `varlen_` differs between captions.
        """

    def token_counts(self, encoder: Any, captions: list[str]) -> list[TokenCount]:
        """For each caption how many tokens it has, and how many of them `encode` reads.

        Of several encoders, that whose states the DiT gets token by token.
        """


class Image(Protocol):
    """image.py: the image encoder, in families that have one. Only the family itself knows what it returns."""

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
        """The number format in which this VAE is both accurate and fast on this device."""

    def load(self, path: str | Path, *, device: torch.device | str, dtype: torch.dtype | None) -> Any:
        """The VAE, from any public layout. WeightsError for another kind of file. Also: `options.vae_arguments`."""

    def encode(self, vae: Any, clip_BCFHW: Tensor) -> Tensor:
        """RGB in -1..1, F = TIME_STRIDE * n + 1, to latents_BCTHW as the DiT takes them. Deterministic."""

    def decode(self, vae: Any, latents_BCTHW: Tensor) -> Tensor:
        """The reverse: RGB in -1..1, clamped, [B, C, F, H, W]."""

    def decode_frames(self, vae: Any, latents_BCTHW: Tensor) -> Iterator[Tensor]:
        """`decode` in pieces along F, in order, for bounded memory. Also: `options.decode_arguments`."""

    def training_samples(
        self, vae: Any, clips: Clips, *, dtype: torch.dtype, image_encoder: Any = None
    ) -> list[list[dict[str, Tensor]]]:
        """For each clip its training samples; each is the tensors of one cache file.

        They have musubi-tuner's names without the dtype suffix, no batch dimension, and may be on any device. "latents"
        is among them, in `dtype`. `image_encoder` is what image.load returned, None if the job names none.
        Further arguments: `options.latent_settings`. DataError for a clip that cannot be made into a sample.
        """


class Model(Protocol):
    """model.py: the DiT.

    It may also have `check_values(values, task=…)`, where shapes alone cannot tell whether a cache is for this task: as
    `check_cache`, of the tensors that `CHECKED_VALUES` names, which should be small, as far as the cache has them. And
    `CACHED_STATES`, the name of the text's states in a cache; their width is the `text_dim` of `variant.config`.
    """

    def build(self, config: Any, *, device: torch.device | str = "meta", dtype: torch.dtype = ...) -> nn.Module:
        """A frozen model of this configuration. On "meta" it has names and shapes only, elsewhere unset weights."""

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
        """A frozen model with `.variant` and `.dtype`, the type it computes in. `role`: the flag that named the file.

        `transform(name, tensor)` sees each weight first, for LoRA merging and quantising. `parts.weights.load_into`
        calls it, and lets it choose what is read at all.
        """

    def blocks(self, dit: nn.Module) -> Sequence[nn.Module]:
        """The blocks in the order in which they run. They take and return plain tensors (or None).

        A block may have `TOKENWISE`, the names of its methods that treat each token by itself and so can be run in
        pieces (memory/pieces.py). These take tensors [B, L, …] and return one or several. `LAST` names the one of
        them, if any, whose result is the block's.
        """

    def velocity(self, dit: nn.Module, x_BCTHW: Tensor, timestep_B: Tensor, cond: dict[str, Any]) -> Tensor:
        """Noise - clean, float32, of x's shape (without channels added by conditioning). timestep_B in 0..1000.

        Must not synchronise with the device: no `.item()`, no branch on tensor values.
        """

    def cond_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """`cond` for a batch of cached tensors: B first, names without the dtype suffix, `varlen_x` as a list "x".

        Also: `options.conditioning_arguments`.
        """

    def check_cache(self, shapes: Shapes) -> str:
        """What a cache file of these tensors lacks for this job, and the flags that add it; "" if nothing.

        Names are as in `cond_from_batch`, shapes without B. Also: `options.conditioning_arguments`.
        """


class Keys(Protocol):
    """keys.py: weight names. Pure string functions, used for modules of LoRA files too."""

    LORA_BLOCKS: tuple[str, ...]  # class names of the blocks whose layers a LoRA adapts
    LORA_EXCLUDE: str  # layers left out: a regular expression that matches whole module paths

    def dit_name(self, name: str) -> str | None:
        """Our name, which is the original checkpoint's, for a name in any public layout; None drops it."""

    def arrange(self, shapes: Shapes) -> Mapping[str, tuple[Rows, ...]]:
        """For the tensors of a file: our name -> the rows that make up our tensor (parts/weight_views.py)."""

    def diffusers_parts(self, path: str) -> tuple[str, ...]:
        """The layers of diffusers that make up a module of ours, first row first; a single one if it has the same.

        Of several, each but the last has as many rows as the module has columns.
        """

    def lora_pieces(self, name: str) -> tuple[str, ...]:
        """Our modules, first row first, that one layer of another layout holds, for LoRAs of that layout.

        `name` has underscores for dots, as kohya writes it. () if `dit_name` and `diffusers_parts` already cover the
        name, or it is unknown.
        """

    def is_fp8_weight(self, name: str) -> bool:
        """Whether this layer may be kept in fp8."""


class Sample(Protocol):
    """sample.py: how a whole video is made.

    Optional: `check_request(request, dit)`, OptionError for what this DiT, still without weights, cannot do.
    """

    def texts(self, request: Request) -> list[str]:
        """Every text of a request that has to be encoded; the negative prompt only if guidance needs it."""

    def prepare(self, request: Request, encoders: Encoders) -> dict[str, Any]:
        """The request's images and videos, encoded, in main memory. The DiT is not loaded yet."""

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
        """Clean latents_BCTHW of one video, or of the single frame asked for.

        `texts` maps each of `texts(request)` to its result of text.encode, `inputs` is that of `prepare`; both are in
        main memory.
        """


class Tiny(Protocol):
    """tiny.py: small models with the files and names of the real ones, for the demo and the tests.

    Optional: `DATASET_KEYS`, what the demo's dataset file needs besides; `LEARNS_BY_HEART = False` if a LoRA cannot
    make the DiT memorise a clip, so that the demo skips this proof.
    """

    def write_tiny_models(self, folder: str | Path, *, seed: int = 42) -> dict[str, Path]:
        """Write all files into `folder`, created if missing; returns paths by option. Weights follow from the seed."""

    def tiny_model_options(self, folder: str | Path) -> dict[str, dict[str, Any]]:
        """For each verb, the options that make it use the models in `folder`."""


class Pocket(Protocol):
    """pocket.py: the small trained model of a family that has one; the demo runs on it instead of `tiny`'s.

    Its files are in the demo's own folder, together with clips of something the model has never seen. Values only.
    Optional, as paths in that folder: `BESIDE`, files that the model files need beside them, and `FIRST_FRAMES`, for
    each prompt the picture its video starts with. Also optional: `DATASET_KEYS`, as in `Tiny`.
    """

    FILES: Mapping[str, str]
    """Names of the model files, by option."""
    CONCEPT: str
    """What the clips show and the model has never seen, in the plural; with `_` for spaces, the folder of the clips."""
    DATASET: Mapping[str, Any]
    """The [general] table of the dataset file."""
    TRAINING: Mapping[str, Any]
    """Training options with which a LoRA learns these clips."""
    GENERATION: Mapping[str, Any]
    """Options for generating."""
    PROMPTS: tuple[str, ...]
    """Prompts that show what the LoRA has learned: the demo generates each with and without it."""

    def pocket_model_options(self, folder: str | Path) -> dict[str, dict[str, Any]]:
        """For each verb, the options that make it use the models in `folder`."""


class Bench(Protocol):
    """bench.py: what `bench` measures, and random inputs for it in the layout of public files and caches.

    Its functions import torch, the file does not: `bench --list` reads it.
    """

    MODELS: tuple[BenchModel, ...]
    VAE: BenchVae

    def write_encoders(self, folder: Path, config: Any) -> dict[str, Path]:
        """Write text and image encoders of few layers, as wide as a DiT of this `config` needs; paths by option."""

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
