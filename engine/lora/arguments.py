"""`--network_module` and `--network_args`: which kind of adapter is trained, on what, and how.

The names are established ones: musubi-tuner's networks.lora / loha / lokr, lycoris' `algo`, `factor`, `dora_wd` …,
sd-scripts' `network_reg_dims` and `network_reg_lrs`. lycoris.kohya adapts every linear layer of the blocks, as lycoris'
preset "full" does; the other modules skip the layers that the family excludes.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract.errors import OptionError
from ..contract.wording import did_you_mean
from .adapters import Adapter, LohaAdapter, LokrAdapter, LoraAdapter

LYCORIS = "lycoris.kohya"
MODULES: dict[str, type[Adapter]] = {"networks.loha": LohaAdapter, "networks.lokr": LokrAdapter}
"""All but LoRA, which is networks.lora or networks.lora_<family>, and lycoris.kohya."""
ALGORITHMS: dict[str, type[Adapter]] = {
    "lora": LoraAdapter, "locon": LoraAdapter, "loha": LohaAdapter, "lokr": LokrAdapter,
}  # fmt: skip
_EVERYWHERE = ("rank_dropout", "module_dropout", "exclude_patterns", "include_patterns", "verbose", "dora_wd",
               "network_reg_dims", "network_reg_lrs")  # fmt: skip
_OWN: dict[type[Adapter], tuple[str, ...]] = {
    LoraAdapter: ("conv_dim", "conv_alpha", "loraplus_lr_ratio"),
    LohaAdapter: (),
    LokrAdapter: ("factor", "full_matrix", "decompose_both"),
}
_OF_LYCORIS = ("algo", "preset", "conv_dim", "conv_alpha")  # lycoris' guides give conv_dim with every algorithm
_DROPOUTS = ("rank_dropout", "module_dropout")
_FOR_CREATE = ("conv_dim", "conv_alpha", "exclude_patterns", "include_patterns")


@dataclass(frozen=True)
class NetworkArguments:
    """The arguments, interpreted: `create` for `network.create`, `like` for `network.create_like`.

    `values`: what was given, typed, for the metadata. `all_linear`: adapt what the family excludes, too.
    """

    values: dict[str, Any]
    create: dict[str, Any]
    like: dict[str, Any]
    all_linear: bool = False
    loraplus_lr_ratio: float | None = None


def read_network_arguments(module: str, arguments: Sequence[str]) -> NetworkArguments:
    """Interpret both options. OptionError: an unknown module or key, a key of another kind of adapter, or a value that
    does not fit."""
    values = parse_network_args(arguments)
    kind = _kind(module, values)
    allowed = (*_EVERYWHERE, *_OWN[kind], *(_OF_LYCORIS if module == LYCORIS else ()))
    for key in values:
        if key not in allowed:
            raise OptionError(
                f"--network_args {key} does not work with --network_module {module}.",
                f"It takes {', '.join(allowed)}.",
                names=("network_args", "network_module"),
            )
    if values.get("preset", "full") != "full":
        raise OptionError(
            f"--network_args preset={values['preset']} is not known; the only one is full, all linear layers of the "
            "blocks.",
            "Choose the layers with include_patterns and exclude_patterns.",
        )
    if values.get("dora_wd") and "conv_dim" in values:
        raise OptionError("--network_args dora_wd=True works on linear layers only.", "Leave out conv_dim.")
    like = {key: values[key] for key in _DROPOUTS if key in values} | {"rates": values.get("network_reg_lrs", {})}
    create = like | {key: values[key] for key in _FOR_CREATE if key in values}
    create |= {"kind": kind, "options": {key: values[key] for key in _OWN[LokrAdapter] if key in values}}
    create |= {"decompose": values.get("dora_wd", False), "ranks": values.get("network_reg_dims", {})}
    return NetworkArguments(
        values=values,
        create=create,
        like=like,
        all_linear=module == LYCORIS,
        loraplus_lr_ratio=values.get("loraplus_lr_ratio"),
    )


def _kind(module: str, values: dict[str, Any]) -> type[Adapter]:
    if module == LYCORIS:
        algorithm = values.get("algo", "lora").lower()
        if algorithm not in ALGORITHMS:
            raise OptionError(
                f"--network_args algo={algorithm} cannot be trained; {', '.join(ALGORITHMS)} can.",
                "lycoris' other algorithms are not built in.",
            )
        return ALGORITHMS[algorithm]
    if module == "networks.lora" or module.startswith("networks.lora_"):
        return LoraAdapter
    if module not in MODULES:
        raise OptionError(
            f"--network_module {module} is unknown; besides LoRA there are {', '.join(MODULES)} and {LYCORIS}.",
            "Leave it out: the default is the family's own LoRA.",
        )
    return MODULES[module]


def _patterns(text: str) -> list[str]:
    """One regular expression, or a Python list of them."""
    if not text.lstrip().startswith("["):
        return [text]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # '\.' without an r before the quotes works, but Python warns
        value = ast.literal_eval(text)
    if not all(isinstance(entry, str) for entry in value):
        raise ValueError("not a list of strings")
    return list(value)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("neither True nor False")
    return text.lower() == "true"


def _by_pattern(text: str, convert: Callable[[str], Any]) -> dict[str, Any]:
    """Parse `pattern=number,pattern=number`; the number follows the last `=`, since a pattern may contain one."""
    found = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        pattern, equals, value = entry.rpartition("=")
        re.compile(pattern)
        if not equals or convert(value) <= 0:
            raise ValueError("not of the form pattern=number")
        found[pattern] = convert(value)
    return found


_BY_PATTERN = "regular expressions that match whole module paths, each with a number above 0"
_NETWORK_ARGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "conv_dim": (int, "a whole number, e.g. conv_dim=4"),
    "conv_alpha": (float, "a number, e.g. conv_alpha=1"),
    "rank_dropout": (float, "a number below 1, e.g. rank_dropout=0.1"),
    "module_dropout": (float, "a number below 1, e.g. module_dropout=0.1"),
    "loraplus_lr_ratio": (float, "a number, e.g. loraplus_lr_ratio=4"),
    "exclude_patterns": (_patterns, "a regular expression or a list, e.g. \"exclude_patterns=[r'.*ffn.*']\""),
    "include_patterns": (_patterns, "a regular expression or a list, e.g. \"include_patterns=[r'.*head.*']\""),
    "verbose": (_switch, "True or False"),
    "dora_wd": (_switch, "True or False"),
    "algo": (str, f"one of {', '.join(ALGORITHMS)}"),
    "preset": (str, "full"),
    "factor": (int, "a whole number, -1 for factors as even as possible"),
    "full_matrix": (_switch, "True or False"),
    "decompose_both": (_switch, "True or False"),
    "network_reg_dims": (
        functools.partial(_by_pattern, convert=int),
        rf"{_BY_PATTERN}, e.g. network_reg_dims=.*ffn\..*=8,.*attn.*=16",
    ),
    "network_reg_lrs": (
        functools.partial(_by_pattern, convert=float),
        rf"{_BY_PATTERN}, e.g. network_reg_lrs=.*ffn\..*=1e-4",
    ),
}


def parse_network_args(arguments: Sequence[str]) -> dict[str, Any]:
    """`--network_args key=value …` as typed values; OptionError for an unknown key or a value that does not fit."""
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise OptionError(f"--network_args {argument!r} is not of the form key=value.")
        if key not in _NETWORK_ARGS:
            hint = did_you_mean(key, _NETWORK_ARGS, f"Known: {', '.join(_NETWORK_ARGS)}.")
            raise OptionError(f"--network_args has no key {key!r}.", hint)
        convert, wanted = _NETWORK_ARGS[key]
        try:
            values[key] = convert(text)
        except (ValueError, SyntaxError, re.error) as error:
            raise OptionError(f"--network_args {key}={text} is not valid.", f"It takes {wanted}.") from error
    return values
