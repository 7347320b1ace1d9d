"""The stages of training Pocket Wan one after the other: what each needs, and which files it leaves.

pocket_wan_vae.safetensors, _t5, _t2v      the models, written anew once a minute
vae_state.pt, dit_state.pt, latents.pt     what an interrupted training goes on from
vae.png, clips.png                         held-out clips beside their copies, and clips made of held-out captions
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.files import whole_file
from engine.families.wan import vae as wan_vae
from engine.parts.weights import open_weights, write_weights

from . import pocket_wan, train_dit, train_vae
from .captions import read_caption
from .data import Clips, held_out_clips, own_tokenizer
from .generating import decode, draw_clips, draw_copies, generate
from .pace import load_state, save_state, say
from .pocket_wan import DIT_NAME, TEXT_NAME, VAE_NAME

LATENTS_NAME, MADE_NAME = "latents.pt", "made.safetensors"
_MEASURED, _COPIED, _SHOWN = 64, 6, 24  # held-out clips for PSNR and for the two pictures


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A command line of `python -m zoo`."""

    stage: str
    out: Path
    copy_to: Path | None
    start_from: Path | None
    device: str
    vae_minutes: float
    dit_minutes: float
    sizes: str
    clips: int
    workers: int
    picture: int
    frames: int
    vae_batch: int | None
    vae_rate: float | None
    dit_batch: int | None
    dit_rate: float | None
    no_compile: bool
    judged: int


class Workshop:
    """One run. Drawing begins when clips are first asked for, and ends with the stage that asked."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.sizes = plan, pocket_wan.SIZES[plan.sizes]
        self.folder = plan.out
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer_file, self.tokenizer = own_tokenizer()

    @cached_property
    def device(self) -> torch.device:
        """Asked for after drawing has begun: processes cannot be forked once CUDA runs."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return torch.device(self.plan.device)

    def all(self) -> None:
        with ExitStack() as stack:
            clips = None if self._encoded() else stack.enter_context(self._draw())
            if clips is not None:
                self.vae(clips)
            self.dit(clips)
        self.show()

    def vae(self, clips: Clips | None = None) -> None:
        with ExitStack() as stack:
            clips = clips or stack.enter_context(self._draw())
            train_vae.train(
                clips,
                sizes=self.sizes,
                recipe=_changed(train_vae.Recipe(), batch=self.plan.vae_batch, rate=self.plan.vae_rate),
                folder=self.folder,
                minutes=self.plan.vae_minutes,
                device=self.device,
                compiled=not self.plan.no_compile,
                on_save=lambda vae: self._write_vae(vae, clips),
                first=self._first(VAE_NAME, pocket_wan.read_vae),
            )

    def dit(self, clips: Clips | None = None) -> None:
        train_dit.train(
            self._examples(clips),
            self.tokenizer,
            sizes=self.sizes,
            recipe=_changed(train_dit.Recipe(), batch=self.plan.dit_batch, rate=self.plan.dit_rate),
            folder=self.folder,
            minutes=self.plan.dit_minutes,
            device=self.device,
            compiled=not self.plan.no_compile,
            on_save=self._write_dit,
            first=self._first_pocket(),
        )

    def show(self) -> None:
        """Pictures of held-out clips, the VAE's PSNR, and latents of many captions for `score`."""
        plan = self.plan
        clips, captions = held_out_clips(max(_MEASURED, plan.judged), size=plan.picture, frames=plan.frames)
        vae = self._finished_vae()
        self._copy(self.folder / VAE_NAME)
        figure = train_vae.measure(vae, clips[:_MEASURED])
        say(f"vae  {VAE_NAME}: {figure:.2f} dB on held-out clips")
        self._copy(draw_copies(vae, clips[:_COPIED], self.folder / "vae.png", title=f"VAE, {figure:.2f} dB"))
        if not (self.folder / DIT_NAME).exists() or not plan.judged:
            return
        captions = captions[: plan.judged]
        latents = generate(self.folder, captions, size=plan.picture, frames=plan.frames, device=self.device)
        made = {"latents": latents.half()}
        write_weights(self.folder / MADE_NAME, made, metadata={"captions": json.dumps(captions)})
        self._copy(self.folder / MADE_NAME)
        rows = list(zip(captions[:_SHOWN], decode(vae, latents[:_SHOWN]), strict=False))
        self._copy(draw_clips(rows, self.folder / "clips.png", title="Held-out captions"))

    def score(self) -> None:
        """What the judge says of the clips that `show` has made."""
        from .judge import judge, shares  # needs packages that a bare GPU machine lacks

        file = open_weights(self.folder / MADE_NAME, role="--out")
        captions = json.loads(file.metadata["captions"])
        clips = decode(self._finished_vae(), file.read("latents").float())
        found = shares(judge(clip, read_caption(caption)) for clip, caption in zip(clips, captions, strict=True))
        say(f"{len(captions)} held-out captions: " + ", ".join(f"{fact} {share:.1%}" for fact, share in found.items()))

    # ------------------------------------------------------------------------------------------------ inputs

    def _draw(self) -> Clips:
        plan = self.plan
        return Clips(plan.clips, split="train", size=plan.picture, frames=plan.frames, workers=plan.workers)

    def _encoded(self) -> bool:
        """Whether the clips are latents already, so that neither they nor the VAE's training are needed again."""
        return (self.folder / LATENTS_NAME).exists()

    def _examples(self, clips: Clips | None) -> train_dit.Examples:
        if self._encoded():
            saved = load_state(self.folder / LATENTS_NAME, device=self.device)
            return train_dit.Examples(saved["latents"], saved["ids"])
        with ExitStack() as stack:
            clips = clips or stack.enter_context(self._draw())
            vae = self._finished_vae()
            clips.wait_for(clips.count, say=say)
            latents_NCTHW = train_vae.encode_all(vae, clips, clips.count)
            ids_NKL = torch.from_numpy(clips.ids_NKL).to(self.device)
        save_state(self.folder / LATENTS_NAME, {"latents": latents_NCTHW, "ids": ids_NKL})
        return train_dit.Examples(latents_NCTHW, ids_NKL)

    def _finished_vae(self) -> wan_vae.WanVae:
        """The VAE's file as the engine loads it; one to start from is taken over as it is."""
        path = self.folder / VAE_NAME
        if not path.exists() and self.plan.start_from is not None:
            shutil.copyfile(self.plan.start_from / VAE_NAME, path)
        return wan_vae.load(path, device=self.device, dtype=wan_vae.compute_dtype(self.device))

    def _first(self, name: str, read: Any) -> Any:
        return None if self.plan.start_from is None else read(self.plan.start_from / name)

    def _first_pocket(self) -> train_dit.Pocket | None:
        if self.plan.start_from is None or not (self.plan.start_from / DIT_NAME).exists():
            return None
        text = self._first(TEXT_NAME, pocket_wan.read_text_encoder)
        return train_dit.Pocket(self._first(DIT_NAME, pocket_wan.read_dit), text)

    # ----------------------------------------------------------------------------------------------- outputs

    def _write_vae(self, vae: wan_vae.WanVae, clips: Clips) -> None:
        mean, std = train_vae.tables(vae, clips)
        pocket_wan.write_vae(self.folder / VAE_NAME, vae.state_dict(), mean=mean, std=std)
        self._copy(self.folder / VAE_NAME)
        held_out, _ = held_out_clips(_MEASURED, size=self.plan.picture, frames=self.plan.frames)
        say(f"vae  saved; {train_vae.measure(vae, held_out):.2f} dB on held-out clips")

    def _write_dit(self, dit: dict[str, Tensor], text: dict[str, Tensor]) -> None:
        pocket_wan.write_dit(self.folder / DIT_NAME, dit, config=self.sizes.dit)
        pocket_wan.write_text_encoder(self.folder / TEXT_NAME, text, tokenizer=self.tokenizer_file)
        for name in (DIT_NAME, TEXT_NAME):
            self._copy(self.folder / name)
        say("dit  saved")

    def _copy(self, path: Path) -> None:
        if self.plan.copy_to is not None:
            self.plan.copy_to.mkdir(parents=True, exist_ok=True)
            with whole_file(self.plan.copy_to / path.name) as temporary:
                shutil.copyfile(path, temporary)


def _changed(recipe: Any, **values: Any) -> Any:
    """The recipe with those values that are given."""
    return dataclasses.replace(recipe, **{name: value for name, value in values.items() if value is not None})
