"""Noise levels and noise mixing against the reference's (`musubi_timesteps*`).

Three ways, in falling strictness: fixed uniforms go through the inverse CDF and must give the same timesteps; our
generator, seeded alike and called in the same order, must give the same first values; and the quantiles, mean and
spread of each case must agree statistically with a different seed. Cases in which the reference bounds the index of
its table instead of the timestep (mode `sigma` with a window) are turned the right way round before comparing, and
their labels say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from engine.training.sigmas import SigmaSampling, draw
from engine.training.step import add_noise
from tests.golden.kit import Golden, Row, row

STATISTICAL_LIMIT = 0.02 * 1000
DRAWS = 20_000
EXACT_LIMIT = 1e-5 * 1000  # 1e-5 of the 0..1000 range
MIRRORED = " (differs on purpose: the reference's window bounds the index, here turned to bound the timestep)"


def sampling_of(case: dict[str, Any]) -> SigmaSampling:
    """Our options for one case of the file."""
    values = dict(case["args"])
    preserve = bool(values.pop("preserve_distribution_shape", False))
    values.pop("num_timestep_buckets", None)  # it changes where the uniforms come from, not what is made of them
    return SigmaSampling(mode=case["timestep_sampling"], preserve_shape=preserve, **values)


def latent_size(info: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of the latents that the cases were drawn for; the file says so in its description of the seed."""
    found = re.search(r"latents \[n,1,1,(\d+),(\d+)\]", info["seed"])
    assert found, "the file does not say for which latent size it was made"
    return int(found[1]), int(found[2])


def seed_of(info: dict[str, Any]) -> int:
    found = re.search(r"manual_seed\((\d+)\)", info["seed"])
    assert found, "the file does not say which seed it was made with"
    return int(found[1])


def mirrored(case: dict[str, Any]) -> bool:
    """Whether the reference turned the window round."""
    bounded = {"min_timestep", "max_timestep"} & set(case["args"])
    return case["timestep_sampling"] == "sigma" and bool(bounded)


def check_timesteps(golden: Golden) -> Iterable[Row]:
    size, seed = latent_size(golden.info), seed_of(golden.info)
    for case in golden.info["cases"]:
        yield from check_case(golden, case, size, seed)
    yield from check_mixing(golden, size)


def check_case(golden: Golden, case: dict[str, Any], size: tuple[int, int], seed: int) -> Iterable[Row]:
    sampling, count = sampling_of(case), case["n"]
    name = f"case {case['case']} {case['timestep_sampling']}"
    mapped = golden.tensors.get(f"map{case['case']}.timesteps")
    if mapped is not None:
        uniform_B = golden.tensors["map.u"]
        _, timestep_B = draw(
            sampling, count=len(uniform_B), latent_size=size, generator=torch.Generator(), uniform_B=uniform_B
        )
        yield row(f"{name} mapped", timestep_B, mapped, EXACT_LIMIT)
    first = golden.tensors.get(f"c{case['case']}.first64_timesteps")
    if first is not None:
        generator = torch.Generator().manual_seed(seed)
        sigma_B, timestep_B = draw(sampling, count=count, latent_size=size, generator=generator)
        mix = golden.tensors[f"c{case['case']}.first64_mix"]
        if mirrored(case):
            low, high = sampling.window
            first, mix = first + low + high - 1000.0, mix + (low + high) / 1000.0 - 1.0
        label = f"{name} first {len(first)}{MIRRORED if mirrored(case) else ''}"
        yield row(f"{label} timesteps", timestep_B[: len(first)], first, EXACT_LIMIT)
        yield row(f"{label} sigmas", sigma_B[: len(mix)], mix)
    yield check_statistics(case, sampling, size, seed + 1, name)


def check_statistics(case: dict[str, Any], sampling: SigmaSampling, size: tuple[int, int], seed: int, name: str) -> Row:
    """Draws of another seed: the share below each of their quantiles (in thousandths), the mean and the spread.

    The limit is 0.02 of the whole for two samples of 20,000 (four standard errors), and grows as the file's sample
    shrinks.
    """
    generator = torch.Generator().manual_seed(seed)
    _, timestep_B = draw(sampling, count=DRAWS, latent_size=size, generator=generator)
    low, high = sampling.window
    turned = low + high - 1000.0 if mirrored(case) else 0.0
    errors = [
        1000.0 * (float((timestep_B <= value + turned).float().mean()) - float(mark))
        for mark, value in case["quantiles"].items()
    ]
    errors += [float(timestep_B.mean()) - case["mean"] - turned, float(timestep_B.std()) - case["std"]]
    limit = STATISTICAL_LIMIT * math.sqrt((1 / case["n"] + 1 / DRAWS) / (2 / DRAWS))
    worst = max(abs(error) for error in errors)
    return Row(f"{name} quantiles, mean, spread{MIRRORED if mirrored(case) else ''}", worst, limit)


def check_mixing(golden: Golden, size: tuple[int, int]) -> Iterable[Row]:
    """`mix.*`: fixed latents, noise and timesteps; the file's notes name the shift and the uniforms."""
    tensors = golden.tensors
    if "mix.noisy" not in tensors:
        return
    sigma_B = (tensors["mix.timesteps"] - 1.0) / 1000.0
    yield row(
        "mix noisy latents", add_noise(tensors["mix.latents"], tensors["mix.noise"], sigma_B), tensors["mix.noisy"]
    )
    note = next((text for text in golden.info["notes"] if "mix.*" in text), "")
    found = re.search(r"mix\.\*: shift=([\d.]+), u=\[([\d., ]+)\]", note)
    if found:
        uniform_B = torch.tensor([float(number) for number in found[2].split(",")])
        sampling = SigmaSampling(mode="shift", discrete_flow_shift=float(found[1]))
        _, timestep_B = draw(
            sampling, count=len(uniform_B), latent_size=size, generator=torch.Generator(), uniform_B=uniform_B
        )
        yield row("mix timesteps", timestep_B, tensors["mix.timesteps"], EXACT_LIMIT)


CHECKS = {"musubi_timesteps*": check_timesteps}
