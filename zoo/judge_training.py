"""Trains the judge's network on the clips of the training split: some minutes on one core, from fixed seeds.

Crops are cut by the same code that judges. Half of the clips are as they are drawn, or nearly; the others are made as
poor as a generator might. What is no shape of ours is made of two shapes that are: their union, overlap or mean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from engine.contract.events import Meter, Say
from engine.contract.files import write_bytes

from .degrading import degrade
from .scenes import concept_scene, random_scene, render
from .seeing import follow, look
from .shape_net import SHAPE_NAMES, TEXTURE_NAMES, WEIGHTS, ShapeNet, crops

CLIPS, EPOCHS, BATCH = 5000, 14, 64
_FIRST_SEED = 5_000_000
_CONCEPTS = {0: "striped_hexagon", 1: "pixel_art"}  # in so many of ten clips
_OTHERS = 0.12  # of the crops
_LEARNING_RATE = 2e-3
_ALIKE, _LEAST_COVER = 0.72, 30.0  # overlap by which two crops are the same shape; pixels below which there is nothing


def train(*, say: Say, path: Path = WEIGHTS, clips: int = CLIPS, epochs: int = EPOCHS) -> Path:
    """Draw the clips, train, and write the weights in float16; returns their path."""
    torch.manual_seed(0)
    pictures, shapes, textures = _examples(clips, say)
    net = ShapeNet()
    steps = epochs * (len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    chance = np.random.default_rng(1)
    meter = Meter(say, total=steps, unit="steps", label="training")
    for _ in range(epochs):
        order = chance.permutation(len(pictures))[: len(pictures) // BATCH * BATCH]
        for chosen in order.reshape(-1, BATCH):
            batch, right_shapes, right_textures = pictures[chosen], shapes[chosen], textures[chosen]
            _spoil(batch, right_shapes, chance)
            said_shape, said_texture = net(torch.from_numpy(batch))
            loss = cross_entropy(said_shape, torch.from_numpy(right_shapes), label_smoothing=0.02)
            loss = loss + 0.5 * cross_entropy(said_texture, torch.from_numpy(right_textures), label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            meter.advance()
    meter.close()
    write_bytes(path, save({name: tensor.half() for name, tensor in net.state_dict().items()}))
    return path


def _examples(clips: int, say: Say) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops [N, 2, H, W] with the numbers of their shapes and textures, [N] each."""
    pictures, shapes, textures = [], [], []
    meter = Meter(say, total=clips, unit="clips", label="drawing")
    for number in range(clips):
        seed = _FIRST_SEED + number
        concept = _CONCEPTS.get(number % 10)
        scene = concept_scene(concept, seed) if concept else random_scene(seed, split="train")
        clip = render(scene)
        if number % 4:
            clip = degrade(clip, seed=seed, strength=0.4 + 0.3 * (number % 4))
        found = crops(sight := look(clip), follow(sight, scene.subject.colour))
        pictures.append(found)
        shapes += [SHAPE_NAMES.index(scene.subject.shape)] * len(found)
        textures += [TEXTURE_NAMES.index(scene.subject.texture)] * len(found)
        meter.advance()
    meter.close()
    return np.concatenate(pictures), np.array(shapes), np.array(textures)


def _spoil(batch: np.ndarray, shapes: np.ndarray, chance: np.random.Generator) -> None:
    """Make some crops of a batch into what is no shape of ours, in place. Mirrors half of the others' crops."""
    mirrored = chance.random(len(batch)) < 0.5
    batch[mirrored] = batch[mirrored][..., ::-1]
    partners = chance.permutation(len(batch))
    for index in np.flatnonzero(chance.random(len(batch)) < _OTHERS):
        partner = partners[index]
        one, other = batch[index, 0], np.rot90(batch[partner, 0], int(chance.integers(4)))
        other = np.roll(other, chance.integers(-5, 6, size=2), axis=(0, 1))
        mixed = (np.maximum(one, other), np.minimum(one, other), (one + other) / 2)[chance.integers(3)]
        if np.minimum(mixed, one).sum() < _ALIKE * np.maximum(mixed, one).sum() and mixed.sum() > _LEAST_COVER:
            batch[index, 0], shapes[index] = mixed, SHAPE_NAMES.index("other")
