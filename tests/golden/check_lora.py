"""LoRA files: names and numbers of `convert_lora`, `lora_post_hoc_ema`, and of lycoris' and musubi-tuner's adapters.

Where convert_lora spoils a name (FramePack's, every `_` turned into `.`), the right name is required, and the spoilt
one must be understood. Its alphas on the way back are whole-number tensors; ours are fractions of the same value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.contract.errors import OptionError
from engine.lora.adapters import KINDS, LohaAdapter, LokrAdapter, LoraAdapter
from engine.lora.ema import average, betas, power_gamma
from engine.lora.files import LoraFile, read_lora
from engine.lora.formats import to_default, to_other
from engine.lora.merge import merger
from engine.lora.names import LoraTarget, split
from engine.lora.weights import understand
from engine.tasks.lora_targets import fullest_target
from tests.golden.kit import Golden, Row, row, same

FAMILIES = {"wan": "wan", "hunyuan": "hunyuan_video", "hunyuan_mod": "hunyuan_video", "framepack": "framepack"}
ADAPTERS = {"LoRA": LoraAdapter, "LoHa": LohaAdapter, "LoKr": LokrAdapter}


def group(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def read(tensors: dict[str, Tensor], target: LoraTarget) -> LoraFile:
    """Through a file, as anyone's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        return read_lora(path, target)


def check_convert(golden: Golden) -> Iterable[Row]:
    for case in sorted({name.partition(".default.")[0] for name in golden.tensors if ".default." in name}):
        family = FAMILIES[case.rpartition("_a")[0]]
        target = fullest_target(family)
        default, theirs, back = (group(golden.tensors, f"{case}.{kind}.") for kind in ("default", "other", "back"))
        found = read(default, target)
        yield same(f"{case} unmatched", found.unmatched, ())
        ours = to_other(found.modules)
        names = {name: right_name(name, target) for name in theirs}
        yield same(f"{case} names", sorted(ours), sorted(names.values()))
        if family != "framepack":
            yield same(f"{case} names as theirs", sorted(ours), sorted(theirs))
        for name, right in names.items():
            yield row(f"{case} {name}", ours[right], theirs[name])
        again = to_default(read(theirs, target).modules)
        yield same(f"{case} names back", sorted(again), sorted(back))
        for name, value in back.items():
            yield row(f"{case} back {name}", again[name], value)
    target = fullest_target("wan")
    for name in golden.info["name_maps"]["foreign"]["in"]:
        stem, part = split(name) or ("", "")
        wanted = f"lora_unet_{stem.partition('.')[2].replace('.', '_')}.{part}"
        yield same(f"foreign {name}", wanted in golden.info["name_maps"]["foreign"]["out"], "text_encoder" not in name)
        if ".blocks." in name:
            yield same(f"foreign {name} found", target.find(stem) is not None, True)


def right_name(name: str, target: LoraTarget) -> str:
    """Their name with the module's own path in it."""
    stem, part = split(name) or (name, "")
    place = target.find(stem)
    half = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B"}[part]
    return f"diffusion_model.{place.modules[0]}.{half}.weight" if place else name


def check_hunyuan_to_framepack(golden: Golden) -> Iterable[Row]:
    """Up halves are filled with their row numbers, so that the cuts can be read off the result."""
    rank, given = golden.info["rank"], {}
    for name, shape in golden.info["in"].items():
        given[name] = torch.zeros(shape)
        if name.endswith("lora_up.weight"):  # described by its first column only
            given[name] = torch.arange(shape[0], dtype=torch.float32).unsqueeze(1).expand(-1, rank)
        elif name.endswith("alpha"):
            given[name] = torch.tensor(float(rank))
    found = to_default(read(given, fullest_target("framepack")).modules)
    wanted = golden.info["map"]
    yield same("names", sorted(found), sorted(wanted))
    for name, told in wanted.items():
        if told["up_rows"] is None:
            yield same(f"{name} shape", list(found[name].shape), told["shape"])
            continue
        first, last = told["up_rows"]
        rows = torch.arange(first, last + 1, dtype=torch.float32).unsqueeze(1).expand(-1, rank)
        yield row(f"{name} rows", found[name], rows, limit=0.0)


def check_ema(golden: Golden) -> Iterable[Row]:
    for text, told in golden.info["sigma_rel"].items():
        yield row(f"gamma of {text}", torch.tensor(power_gamma(float(text))), torch.tensor(told["gamma"]))
        ours = betas(21, beta=0.0, sigma_rel=float(text))
        yield row(f"betas of {text}", torch.tensor(ours), torch.tensor(told["betas_t1_to_20"]))
    for case in golden.info["linear"]:
        ours = betas(case["files"], beta=case["beta"], beta2=case["beta2"])
        yield row(f"linear {case['beta']} to {case['beta2']}", torch.tensor(ours), torch.tensor(case["betas"]))
    for text in golden.info["sigma_rel_out_of_range"]:
        yield same(f"{text} is refused", refused(float(text)), True)
    count = len({name.partition(".")[0] for name in golden.tensors if name.startswith("file")})
    files = [(f"file{number}", group(golden.tensors, f"file{number}.")) for number in range(count)]
    for case in sorted({name.partition(".lora")[0] for name in golden.tensors if name.startswith("merged_")}):
        if ".step" in case:
            continue
        merged = average(files, betas(count, **arguments(case)))
        for name, value in group(golden.tensors, f"{case}.").items():
            yield row(f"{case} {name}", merged[name], value)
            yield same(f"{case} {name} dtype", merged[name].dtype, value.dtype)


def arguments(case: str) -> dict[str, float]:
    """`merged_sig0.15`, `merged_lin0.9_0.99`, `merged_beta0.95`."""
    kind = case.removeprefix("merged_")
    if kind.startswith("sig"):
        return {"beta": 0.0, "sigma_rel": float(kind.removeprefix("sig"))}
    if kind.startswith("lin"):
        first, last = kind.removeprefix("lin").split("_")
        return {"beta": float(first), "beta2": float(last)}
    return {"beta": float(kind.removeprefix("beta"))}


def refused(sigma_rel: float) -> bool:
    try:
        power_gamma(sigma_rel)
    except OptionError:
        return True
    return False


def check_adapters(golden: Golden) -> Iterable[Row]:
    for case in golden.info["cases"]:
        name = case["name"]
        given, wanted = group(golden.tensors, f"{name}.in."), group(golden.tensors, f"{name}.out.")
        parts = group(golden.tensors, f"{name}.adapter.")
        alpha = float(parts["alpha"])
        weights = understand(parts, alpha=alpha, where=name)
        yield same(f"{name} kind", (weights.kind, weights.dora is not None), (case["kind"], case["dora"]))
        yield row(f"{name} change", weights.change().reshape(wanted["change"].shape), wanted["change"])
        file = LoraFile(Path(name), {"layer": weights})
        yield row(f"{name} merged", merger([(file, 1.0)])("layer.weight", given["weight"]), wanted["weight"])
        yield same(f"{name} written", sorted(weights.tensors()), sorted(parts))
        if given["weight"].ndim == 2:
            lora = weights.as_lora()
            yield row(f"{name} as a LoRA", lora.change(), wanted["change"], limit=2e-5)
        if case["trainable"]:
            yield from check_training(name, case, given, wanted, parts)
            yield from check_training(f"{name} like the file", {**case, "like": weights}, given, wanted, parts)


def check_training(label: str, case: dict, given: dict, wanted: dict, parts: dict) -> Iterable[Row]:
    """The adapter that we would train with these settings has their parameters, and computes their output."""
    layer = nn.Linear(given["weight"].shape[1], given["weight"].shape[0])
    layer.load_state_dict({"weight": given["weight"], "bias": given["bias"]})
    if "like" in case:
        adapter = KINDS[type(case["like"])].like(layer, case["like"], path="layer")
    else:
        make, options = ADAPTERS[case["kind"]], dict(case["options"])
        adapter = make(layer, path="layer", dim=case["rank"], alpha=case["alpha"], decompose=case["dora"], **options)
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    yield same(f"{label} parameters", shapes, {name: tuple(value.shape) for name, value in parts.items()})
    yield row(f"{label} alpha", adapter.alpha, parts["alpha"])
    if case["dora"]:
        yield row(f"{label} first lengths", adapter.dora_scale, given["weight"].norm(dim=1, keepdim=True))
    adapter.load_state_dict(parts)
    adapter.refresh()
    adapter.multiplier = case["multiplier"]
    yield row(label, layer(given["x"]), wanted["y"])


CHECKS = {
    "musubi_lora_convert*": check_convert,
    "musubi_lora_hunyuan_to_framepack*": check_hunyuan_to_framepack,
    "musubi_post_hoc_ema*": check_ema,
    "lycoris_adapters*": check_adapters,
}
