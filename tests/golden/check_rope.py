"""Rotary tables against the four reference implementations: every entry of rope_tables*.

What an entry was made with is read from the JSON's own description of it, by the patterns below; an entry that no
pattern knows is a miss, so that a new file cannot pass unread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

import torch

from engine.parts.rope import (
    framepack_table,
    frequencies,
    grid_angles,
    hunyuan_table,
    riflex_frequencies,
    rotate,
    wan_axes,
    wan_table,
)
from tests.golden.kit import Golden, Row, row

Tensors = dict[str, torch.Tensor]
NUMBER = r"[-\d.]+"


def numbers(text: str) -> list[int]:
    return [int(value) for value in re.findall(r"-?\d+", text)]


def said(text: str, name: str, otherwise: float) -> float:
    """The number after `name=` in a description."""
    found = re.search(rf"\b{name}=({NUMBER})", text)
    return float(found[1].rstrip(".")) if found else otherwise


def doubled(part: torch.Tensor) -> torch.Tensor:
    """[…, D/2] to […, D] with each column twice in a row: how HunyuanVideo's and FramePack's code keep tables."""
    return part.repeat_interleave(2, dim=-1)


def text_of(golden: Golden, group: str) -> str:
    return " ".join(text for key, text in golden.info["items"].items() if key == group or key.startswith(group + "."))


def hunyuan(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    text, grid = text_of(golden, group), (3, 4, 5)
    found = re.search(r"grid \(([\d,]+)\)", text) or re.search(r"\],\(([\d,]+)\)", text)
    grid = tuple(numbers(found[1]))
    cos, sin = hunyuan_table(
        grid,
        theta=said(text, "theta", 256.0),
        theta_rescale=said(text, "theta_rescale_factor", 1.0),
        interpolation=said(text, "interpolation_factor", 1.0),
    )
    yield row(f"{group}.cos", doubled(cos), tensors["cos"])
    yield row(f"{group}.sin", doubled(sin), tensors["sin"])
    if "q" in tensors:
        yield row(f"{group}.q_rot", rotate(tensors["q"], cos, sin), tensors["q_rot"])


def hunyuan_riflex(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    length, index = numbers(re.fullmatch(r"hv_riflex_L(\d+_k\d+)", group)[1].replace("_k", " "))
    frames, columns = tensors["cos_t"].shape
    corner = tensors.get("cos_full_firstlast")
    height, width = corner.shape[1:3] if corner is not None else (1, 1)
    cos, sin = hunyuan_table((frames, height, width), riflex_index=index, riflex_length=length)
    cos, sin = (doubled(part).view(frames, height, width, -1) for part in (cos, sin))
    yield row(f"{group}.cos_t", cos[:, 0, 0, :columns], tensors["cos_t"])
    yield row(f"{group}.sin_t", sin[:, 0, 0, :columns], tensors["sin_t"])
    if corner is not None:
        yield row(f"{group}.cos_full_firstlast", cos[[0, -1]], corner)


def wan(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    head_dim = int(group.removeprefix("wan"))
    omegas = torch.cat([frequencies(dim) for dim in wan_axes(head_dim)])
    last = numbers(golden.info["items"][f"{group}.freqs_last_re"])
    positions = {"freqs": torch.arange(len(tensors["freqs_re"])), "freqs_last": torch.arange(last[0], last[-1] + 1)}
    for name, places in positions.items():
        angles = torch.outer(places.double(), omegas)
        yield row(f"{group}.{name}_re", angles.cos(), tensors[f"{name}_re"])
        yield row(f"{group}.{name}_im", angles.sin(), tensors[f"{name}_im"])
    grids = json.loads(re.search(r"grid_sizes (\[\[.*\]\])", golden.info["items"][f"{group}.x"])[1])
    for index, grid in enumerate(grids):
        length = grid[0] * grid[1] * grid[2]
        ours = tensors["x"][index : index + 1].clone()
        ours[:, :length] = rotate(ours[:, :length], *wan_table(tuple(grid), head_dim=head_dim))
        yield row(f"{group}.x_rot sample {index}", ours, tensors["x_rot"][index : index + 1])


def wan_frame_indices(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    text = text_of(golden, group)
    grid = tuple(numbers(re.search(r"\(\(([\d,]+)\)", text)[1]))
    indices = json.loads(re.search(r"f_indices=(\[.*?\])", text)[1])
    cos, sin = wan_table(grid, head_dim=2 * tensors["re"].shape[1], frame_indices=indices)
    yield row(f"{group}.re", cos, tensors["re"])
    yield row(f"{group}.im", sin, tensors["im"])


def riflex_table(text: str, *, frames: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    grid = tuple(numbers(re.search(r"grid \(([\d,]+)\)", text)[1]))
    head_dim = sum(numbers(re.search(r"\[([\d,]+)\]", text)[1]))
    return wan_table(grid, head_dim=head_dim, riflex_index=index, riflex_length=frames)


def wan_riflex(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    frames, index = numbers(re.fullmatch(r"wan_riflex_nf(\d+_k\d+)", group)[1].replace("_k", " "))
    cos, sin = riflex_table(golden.info["items"][group], frames=frames, index=index)
    matrices = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    yield row(group, matrices[None, None], tensors[""])


def wan_riflex_apply(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    text = golden.info["items"][f"{group}.out"]
    frames, index = int(said(text, "nf", 81)), int(said(text, "k", 6))
    table = riflex_table(golden.info["items"][f"wan_riflex_nf{frames}_k{index}"], frames=frames, index=index)
    yield row(f"{group}.out", rotate(tensors["x"], *table), tensors["out"])


def wan_riflex_latent_frames(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    length, index = numbers(re.fullmatch(r"wan_riflex_kijai_L(\d+_k\d+)", group)[1].replace("_k", " "))
    places, columns = tensors["re"].shape
    omega = riflex_frequencies(2 * columns, index=index, length=length)
    angles = grid_angles([torch.arange(places)], [omega])
    yield row(f"{group}.re", angles.cos(), tensors["re"])
    yield row(f"{group}.im", angles.sin(), tensors["im"])


def framepack(golden: Golden, group: str, tensors: Tensors) -> Iterable[Row]:
    items = golden.info["items"]

    def expected(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = part[0].flatten(1).t().chunk(2, dim=1)  # [1, 2D, T, H, W] to two of [L, D]
        return cos, sin

    def compare(label: str, ours: tuple[torch.Tensor, torch.Tensor], theirs: torch.Tensor) -> Iterable[Row]:
        for name, part, wanted in zip(("cos", "sin"), ours, expected(theirs), strict=True):
            yield row(f"{group}.{label} {name}", doubled(part), wanted)

    text = items[f"{group}.rope"]
    indices = json.loads(re.search(r"frame_indices=\[(\[.*?\])", text)[1])
    made = framepack_table(indices, height=int(said(text, "height", 0)), width=int(said(text, "width", 0)))
    yield from compare("rope", made, tensors["rope"])
    for step, name in ((2, "rope_2x"), (4, "rope_4x")):
        text = items[f"{group}.{name}"]
        listed, between = re.search(r"indices \[([\d,]+)\]", text), re.search(r"indices (\d+)\.\.(\d+)", text)
        places = numbers(listed[1]) if listed else list(range(int(between[1]), int(between[2]) + 1))
        table = framepack_table(
            places, height=int(said(text, "H", 0)), width=int(said(text, "W", 0)), pool=(step, step, step)
        )
        yield from compare(name, table, tensors[name])
    yield row(f"{group}.x_rot", rotate(tensors["x"], *made), tensors["x_rot"])


GROUPS: dict[str, Callable[[Golden, str, Tensors], Iterable[Row]]] = {
    r"hv|hv_rescaled": hunyuan,
    r"hv_riflex_L\d+_k\d+": hunyuan_riflex,
    r"wan\d+": wan,
    r"wan_findices": wan_frame_indices,
    r"wan_riflex_nf\d+_k\d+": wan_riflex,
    r"wan_riflex_apply": wan_riflex_apply,
    r"wan_riflex_kijai_L\d+_k\d+": wan_riflex_latent_frames,
    r"framepack": framepack,
}


def check(golden: Golden) -> Iterable[Row]:
    groups: dict[str, Tensors] = {}
    for name, tensor in golden.tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    for group, tensors in groups.items():
        found = next((function for pattern, function in GROUPS.items() if re.fullmatch(pattern, group)), None)
        if found is None:
            yield Row(f"{group}: no check knows this entry", float("inf"), 1e-5)
        else:
            yield from found(golden, group, tensors)


CHECKS = {"rope_tables*": check}
