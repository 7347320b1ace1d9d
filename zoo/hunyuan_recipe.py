"""The stages of training Pocket HunyuanVideo and Pocket FramePack: what each needs, and which files it leaves.

pocket_hunyuan_vae, _llama, _clip, _t2v       the models, written anew every two minutes
pocket_framepack_i2v, _siglip                 FramePack, which shares VAE and text encoders
*_state.pt, latents_*.pt                      what an interrupted training goes on from
vae.png, t2v.png, i2v.png, made.safetensors   held-out clips beside their copies, and clips of held-out captions
"""

from __future__ import annotations

import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.files import whole_file
from engine.families.framepack import image
from engine.families.hunyuan_video import vae as family_vae
from engine.parts.hunyuan_vae_network import HunyuanVae
from engine.parts.siglip import Siglip

from . import (
    hunyuan_showing,
    pocket_framepack,
    pocket_hunyuan,
    pocket_hunyuan_vae,
    train_hunyuan,
    train_vae,
)
from .data import held_out_clips
from .hunyuan_guided import UNGUIDED_NAME, guided_cost
from .latents import moments, to_pixels
from .pace import load_state, save_state, say
from .plan import Plan
from .pocket_framepack import FRAMEPACK_NAME, SIGLIP_NAME
from .pocket_hunyuan import CLIP_NAME, DIT_NAME, LLAMA_NAME, VAE_NAME
from .recipe import MEASURED, TABLED, Workshop, changed, copy_into
from .train_framepack import FramePackPocket, SectionExamples, image_states
from .train_hunyuan import HunyuanPocket
from .train_vae_hunyuan import HUNYUAN, encode_all
from .within_half import fit_half

_LOOKED_AT = 16  # clips, for the scale of what flows through the VAE


class HunyuanWorkshop(Workshop):
    """One run."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.hunyuan = changed(pocket_hunyuan.SIZES[plan.sizes], vae_widths=plan.vae_widths)
        for name in (VAE_NAME, LLAMA_NAME, CLIP_NAME, DIT_NAME):
            if not (self.folder / name).exists() and self._start(name) is not None:
                copy_into(self._start(name), self.folder)
        pocket_hunyuan.write_clip_tokenizer(self.folder)

    # ------------------------------------------------------------------------------------------------ stages

    def vae(self) -> None:
        first = self._start(VAE_NAME)
        torch.manual_seed(self.plan.seed)
        new, read = pocket_hunyuan_vae.new_vae, pocket_hunyuan_vae.read_vae
        vae = new(self.hunyuan.vae_widths) if first is None else read(first)
        self._train_vae(vae, minutes=self.plan.vae_minutes, decoder_only=False)

    def decoder(self) -> None:
        """The VAE in the folder goes on learning to decode. Its latents stay, and with them all that is trained on."""
        vae = pocket_hunyuan_vae.read_vae(self.folder / VAE_NAME)
        self._train_vae(vae, minutes=self.plan.decoder_minutes, decoder_only=True)

    def dit(self) -> None:
        """Text-to-video with both text encoders."""
        pocket, sizes = self._pocket(), self.hunyuan.text

        def write(dit: dict[str, Tensor], texts: dict[str, Tensor]) -> None:
            llama, clip = (_below(texts, name) for name in ("llama.", "clip."))
            pocket_hunyuan.write_dit(self.folder / DIT_NAME, dit, head_dim=pocket.dit.config.head_dim)
            pocket_hunyuan.write_llama(self.folder / LLAMA_NAME, llama, sizes=sizes)
            pocket_hunyuan.write_clip(self.folder / CLIP_NAME, clip, sizes=sizes)
            for name in (DIT_NAME, LLAMA_NAME, CLIP_NAME):
                self._copy(self.folder / name)
            if self.plan.copy_to is not None:
                pocket_hunyuan.write_clip_tokenizer(self.plan.copy_to)

        self._train_dit("t2v", pocket, write, minutes=self.plan.dit_minutes, text_frozen=self.plan.text_frozen)

    def guided(self) -> None:
        """The folder's HunyuanVideo model learns what guidance makes of it, and needs none from then on."""
        before = self.folder / UNGUIDED_NAME
        if not before.exists():
            with whole_file(before) as temporary:
                shutil.copyfile(self.folder / DIT_NAME, temporary)
        teacher = HunyuanPocket(pocket_hunyuan.read_dit(before), self._read_pocket(self.folder).text)
        pocket = HunyuanPocket(copy.deepcopy(teacher.dit), teacher.text)

        def write(dit: dict[str, Tensor], texts: dict[str, Tensor]) -> None:
            pocket_hunyuan.write_dit(self.folder / DIT_NAME, dit, head_dim=pocket.dit.config.head_dim)
            self._copy(self.folder / DIT_NAME)

        self._examples("t2v")  # so that drawing, if it is needed, comes before CUDA
        teacher.to(self.device).requires_grad_(False)
        cost = partial(guided_cost, teacher)
        self._train_dit(
            "guided", pocket, write, minutes=self.plan.dit_minutes, text_frozen=True, examples="t2v", cost=cost
        )

    def i2v(self) -> None:
        """FramePack, from the folder's HunyuanVideo model and with its text encoders; goes on from --start_from's."""
        hunyuan, path = self._read_pocket(self.folder), self.folder / FRAMEPACK_NAME
        first, config = self._start(FRAMEPACK_NAME), pocket_framepack.config_beside(hunyuan.dit.config)
        torch.manual_seed(self.plan.seed)
        new, read = pocket_framepack.new_dit, pocket_framepack.read_dit
        dit = new(hunyuan.dit.state_dict(), config) if first is None else read(first)

        def write(dit: dict[str, Tensor], texts: dict[str, Tensor]) -> None:
            pocket_hunyuan.write_dit(path, dit, head_dim=config.head_dim)
            self._copy(path)

        pocket = FramePackPocket(dit, hunyuan.text)
        self._train_dit("i2v", pocket, write, minutes=self.plan.i2v_minutes, text_frozen=True)

    def show(self) -> None:
        for path in hunyuan_showing.show(self.folder, self.plan, self.tokenizer, device=self.device):
            self._copy(path)

    def score(self) -> None:
        hunyuan_showing.score(self.folder, self.plan, device=self.device)

    # ---------------------------------------------------------------------------------------------- training

    def _train_vae(self, vae: HunyuanVae, *, minutes: float, decoder_only: bool) -> None:
        plan = self.plan
        recipe = self._vae_recipe(decoder_only=decoder_only)
        held_out, _ = held_out_clips(MEASURED, size=plan.picture, frames=plan.frames)

        def write(made: HunyuanVae) -> None:
            path, mean, std = self.folder / VAE_NAME, [0.0] * 16, [1.0] * 16
            clips.wait_for(_LOOKED_AT, say=say)
            fit_half(made, to_pixels(torch.from_numpy(clips.frames_NFHWC[:_LOOKED_AT])))
            if not decoder_only:
                mean, std = moments(encode_all(made, clips.frames_NFHWC[: min(TABLED, clips.ready())], compiled=False))
            pocket_hunyuan_vae.write_vae(path, made.state_dict(), mean=mean, std=std)
            self._copy(path)
            figure = train_vae.measure(self._finished_vae(), held_out, kind=HUNYUAN)
            say(f"{recipe.name}  saved; {figure:.2f} dB on held-out clips")

        with self._draw(plan.vae_clips) as clips:
            train_vae.train(
                clips, vae, recipe=recipe, folder=self.folder, minutes=minutes, device=self.device, on_save=write,
                together=self.together, seed=1 + plan.seed, kind=HUNYUAN,
            )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ inputs

    def _examples(self, kind: str) -> Any:
        if kind == "t2v":
            return super()._examples(kind)
        path = self._latents_file(kind)
        if not path.exists():
            save_state(path, self._encode(kind))
        saved: Any = load_state(path, device=self.device)
        return SectionExamples(saved["latents"], saved["first"], saved["image"], saved["ids"])

    def _without_caption(self) -> Tensor:
        return train_hunyuan.without_caption(self.tokenizer)

    def _encode(self, kind: str) -> dict[str, Tensor]:
        with self._draw(self.plan.clips) as clips:
            clips.wait_for(min(TABLED, clips.count), say=say)
            vae = self._finished_vae()
            clips.wait_for(clips.count, say=say)
            frames_NFHWC, compiled = clips.frames_NFHWC, not self.plan.no_compile
            found = {"latents": encode_all(vae, frames_NFHWC, compiled=compiled)}
            if kind == "i2v":
                found["first"] = encode_all(vae, frames_NFHWC[:, :1], compiled=compiled)
                found["image"] = image_states(self._image_encoder(), frames_NFHWC[:, 0])
            found["ids"] = torch.from_numpy(clips.ids_NKL).to(self.device)
        return found

    def _image_encoder(self) -> Siglip:
        path = self.folder / SIGLIP_NAME
        pocket_framepack.write_image_encoder(path)
        self._copy(path)
        return image.load({"image_encoder": str(path)}, device=self.device)

    def _finished_vae(self) -> HunyuanVae:
        """The VAE's file as the engine loads it."""
        return family_vae.load(self.folder / VAE_NAME, device=self.device, dtype=family_vae.compute_dtype(self.device))

    def _pocket(self) -> HunyuanPocket:
        if self._start(DIT_NAME) is not None:
            return self._read_pocket(self.plan.start_from)
        torch.manual_seed(self.plan.seed)
        return train_hunyuan.new_pocket(self.hunyuan, self.tokenizer)

    def _read_pocket(self, folder: Path) -> HunyuanPocket:
        return hunyuan_showing.read_pocket(folder, self.tokenizer)


def _below(weights: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
