"""The stages of training Pocket Wan one after the other: what each needs, and which files it leaves.

pocket_wan_vae.safetensors, _t5, _t2v, _i2v    the models, written anew every three minutes
*_state.pt, latents_*.pt                       what an interrupted training goes on from
vae.png, t2v.png, i2v.png, made.safetensors    held-out clips beside their copies, and clips of held-out captions
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.contract.files import whole_file
from engine.families.wan import vae as wan_vae
from engine.families.wan.detect import WanConfig

from . import latents, pocket_wan, showing, train_dit, train_vae
from .data import Clips, held_out_clips, own_tokenizer
from .pace import load_state, save_state, say
from .plan import Plan
from .pocket_wan import DIT_NAME, TEXT_NAME, VAE_NAME
from .together import Together
from .train_dit import Examples, Pocket, Weights

MEASURED = 64  # held-out clips for PSNR
TABLED = 2048  # clips that the latents' tables are measured on


class Workshop:
    """One run. Drawing begins when clips are first asked for, and ends with the stage that asked."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.together = plan, Together()
        self.sizes = changed(pocket_wan.SIZES[plan.sizes], vae_widths=plan.vae_widths)
        self.folder = plan.out
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (VAE_NAME, TEXT_NAME, DIT_NAME):
            if not (self.folder / name).exists() and self._start(name) is not None:
                copy_into(self._start(name), self.folder)
        self.tokenizer_file, self.tokenizer = own_tokenizer()

    @cached_property
    def device(self) -> torch.device:
        """Asked for after drawing has begun: processes cannot be forked once CUDA runs."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return self.together.device(self.plan.device)

    # ------------------------------------------------------------------------------------------------ stages

    def vae(self) -> None:
        first = self._start(VAE_NAME)
        torch.manual_seed(self.plan.seed)
        vae = pocket_wan.new_vae(self.sizes) if first is None else pocket_wan.read_vae(first)
        self._train_vae(vae, minutes=self.plan.vae_minutes, decoder_only=False)

    def decoder(self) -> None:
        """The VAE in the folder goes on learning to decode. Its latents stay, and with them all that is trained on."""
        path = self.folder / VAE_NAME
        self._train_vae(pocket_wan.read_vae(path), minutes=self.plan.decoder_minutes, decoder_only=True)

    def dit(self) -> None:
        """Text-to-video with the text encoder, which stays as it is where `text_frozen` says so."""
        pocket, text_frozen = self._pocket(), self.plan.text_frozen
        write = partial(self._write, "t2v", pocket.dit.config, with_text=not text_frozen)
        self._train_dit("t2v", pocket, write, minutes=self.plan.dit_minutes, text_frozen=text_frozen)

    def i2v(self) -> None:
        """Image-to-video, from the folder's text-to-video model and with its text encoder."""
        pocket = train_dit.with_first_frames(self._read_pocket(self.folder))
        write = partial(self._write, "i2v", pocket.dit.config, with_text=False)
        self._train_dit("i2v", pocket, write, minutes=self.plan.i2v_minutes, text_frozen=True)

    def show(self) -> None:
        """Pictures of what is in the folder, the VAE's PSNR, and clips of held-out captions."""
        for path in showing.show(self.folder, self.plan, device=self.device):
            self._copy(path)

    def score(self) -> None:
        """What the judge says of the clips that `show` has made."""
        showing.score(self.folder, self.plan, device=self.device)

    # ---------------------------------------------------------------------------------------------- training

    def _train_vae(self, vae: wan_vae.WanVae, *, minutes: float, decoder_only: bool) -> None:
        plan = self.plan
        recipe = self._vae_recipe(decoder_only=decoder_only)
        held_out, _ = held_out_clips(MEASURED, size=plan.picture, frames=plan.frames)
        tables = pocket_wan.read_tables(self.folder / VAE_NAME) if decoder_only else None

        def write(made: wan_vae.WanVae) -> None:
            path = self.folder / VAE_NAME
            mean, std = tables or latents.tables(made, clips.frames_NFHWC[: min(TABLED, clips.ready())])
            pocket_wan.write_vae(path, made.state_dict(), mean=mean, std=std)
            self._copy(path)
            say(f"{recipe.name}  saved; {train_vae.measure(self._finished_vae(), held_out):.2f} dB on held-out clips")

        with self._draw(plan.vae_clips) as clips:
            train_vae.train(
                clips, vae, recipe=recipe, folder=self.folder, minutes=minutes, device=self.device, on_save=write,
                together=self.together, seed=1 + plan.seed,
            )  # fmt: skip

    def _train_dit(
        self,
        kind: str,
        pocket: Any,
        write: Callable[[Weights, Weights], None],
        *,
        minutes: float,
        text_frozen: bool,
        examples: str = "",
        cost: Callable[..., Tensor] = train_dit.loss,
    ) -> None:
        """`write` gets the weights of DiT and text encoder. `examples`: of which kind, where that is not `kind`."""
        recipe = self._dit_recipe(text_frozen=text_frozen)

        def save(dit: Weights, text: Weights) -> None:
            write(dit, text)
            say(f"{kind}  saved")

        train_dit.train(
            self._examples(examples or kind), self._without_caption(), pocket, name=kind, recipe=recipe,
            folder=self.folder, minutes=minutes, device=self.device, on_save=save, together=self.together,
            seed=2 + self.plan.seed, cost=cost,
        )  # fmt: skip

    def _write(self, kind: str, config: WanConfig, dit: Weights, text: Weights, *, with_text: bool) -> None:
        """The DiT's file, the text encoder's too where it has learned, and copies of both."""
        dit_path, text_path = self.folder / showing.FILES[kind], self.folder / TEXT_NAME
        pocket_wan.write_dit(dit_path, dit, config=config)
        self._copy(dit_path)
        if with_text:
            pocket_wan.write_text_encoder(text_path, text, tokenizer=self.tokenizer_file)
        self._copy(text_path)

    def _vae_recipe(self, *, decoder_only: bool) -> train_vae.Recipe:
        plan = self.plan
        return changed(
            train_vae.Recipe(decoder_only=decoder_only), batch=plan.vae_batch, rate=plan.vae_rate, decay=plan.vae_decay,
            absolute=plan.vae_absolute, squares=plan.vae_squares, edges=plan.vae_edges, muon=plan.muon,
            compiled="nothing" if plan.no_compile else plan.vae_compiled, recorded=plan.recorded,
        )  # fmt: skip

    def _dit_recipe(self, *, text_frozen: bool) -> train_dit.Recipe:
        plan = self.plan
        return changed(
            train_dit.Recipe(text_frozen=text_frozen, compiled=not plan.no_compile), batch=plan.dit_batch,
            rate=plan.dit_rate, decay=plan.dit_decay, shift=plan.dit_shift, dropped=plan.dropped, muon=plan.muon,
            recorded=plan.recorded,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ inputs

    def _draw(self, count: int) -> Clips:
        """This process's share of so many clips."""
        plan, together = self.plan, self.together
        share = count // together.count
        return Clips(
            share, split="train", size=plan.picture, frames=plan.frames, workers=plan.workers,
            first=share * together.number,
        )  # fmt: skip

    def _latents_file(self, kind: str) -> Path:
        return self.folder / f"latents_{kind}_{self.together.number}_of_{self.together.count}.pt"

    def _examples(self, kind: str) -> Examples:
        path = self._latents_file(kind)
        if not path.exists():
            save_state(path, self._encode(kind))
        saved = load_state(path, device=self.device)
        return Examples(saved["latents"], saved["ids"], saved.get("first"))

    def _without_caption(self) -> Tensor:
        """Token ids of what stands in the place of a caption that is left out, [N, L]."""
        return train_dit.without_captions(self.tokenizer)

    def _encode(self, kind: str) -> dict[str, Tensor]:
        compiled = not self.plan.no_compile
        with self._draw(self.plan.clips) as clips:
            clips.wait_for(min(TABLED, clips.count), say=say)
            vae = self._finished_vae()
            clips.wait_for(clips.count, say=say)
            found = {"latents": latents.encode_all(vae, clips.frames_NFHWC, compiled=compiled)}
            if kind == "i2v":
                found["first"] = latents.first_frames(vae, clips.frames_NFHWC, compiled=compiled)
            found["ids"] = torch.from_numpy(clips.ids_NKL).to(self.device)
        return found

    def _finished_vae(self) -> wan_vae.WanVae:
        """The VAE's file as the engine loads it."""
        return wan_vae.load(self.folder / VAE_NAME, device=self.device, dtype=wan_vae.compute_dtype(self.device))

    def _start(self, name: str) -> Path | None:
        """The file of this name to train on from, where there is one."""
        path = None if self.plan.start_from is None else self.plan.start_from / name
        return path if path is not None and path.exists() else None

    def _pocket(self) -> Pocket:
        if self._start(DIT_NAME) is not None:
            return self._read_pocket(self.plan.start_from)
        torch.manual_seed(self.plan.seed)
        return train_dit.new_pocket(self.sizes, self.tokenizer)

    def _read_pocket(self, folder: Path) -> Pocket:
        return Pocket(pocket_wan.read_dit(folder / DIT_NAME), pocket_wan.read_text_encoder(folder / TEXT_NAME))

    # ----------------------------------------------------------------------------------------------- outputs

    def _copy(self, path: Path) -> None:
        if self.plan.copy_to is not None:
            self.plan.copy_to.mkdir(parents=True, exist_ok=True)
            copy_into(path, self.plan.copy_to)


def copy_into(path: Path, folder: Path) -> None:
    """The file in this folder too, whole or not at all."""
    with whole_file(folder / path.name) as temporary:
        shutil.copyfile(path, temporary)


def changed(recipe: Any, **values: Any) -> Any:
    """The recipe with those values that are given."""
    return dataclasses.replace(recipe, **{name: value for name, value in values.items() if value is not None})
