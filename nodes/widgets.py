"""Options as widgets, widgets as ComfyUI inputs, values back as options: the only file that knows both vocabularies.

An option that need not be given has a widget value that leaves it out (0, -1, an empty text, "none", "default"), which
the tooltip names. Values are checked again when a node runs, because values from links were never checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

from ..engine.contract.errors import OptionError
from ..engine.contract.files import is_utf_8
from ..engine.contract.schema import Option
from . import allowed, paths, prompts, sockets, words
from .spec import NONE, Input, Switch, Widget, display

DEFAULT = "default"
AUTO = "auto"
HIGHEST_FLOAT = 1e9
HIGHEST_INT = 2**53 - 1
"""JavaScript's largest safe integer; seeds reach further and are drawn by ComfyUI."""
MODEL_KINDS = tuple(paths.MODEL_FOLDERS)


# --------------------------------------------------------------------------------------------- from option to widget


def left_out(option: Option) -> str:
    """Why an option has no widget; "" if it has one (or belongs to a socket)."""
    secret = "a secret" if option.secret else ""
    return option.accepted or secret or allowed.LEFT_OUT.get(option.name, "") or unplaced(option)


def unplaced(option: Option) -> str:
    """Why an option cannot have a widget, although `allowed` does not leave it out; a test makes sure that none is
    so."""
    if sockets.type_of(option) or sockets.from_stack(option) or option.name in allowed.LEFT_OUT:
        return ""
    if option.many and not option.count and option.kind not in ("int", "float"):
        return "a list"
    if option.kind == "str" and not (option.choices or option.name in allowed.CHOICES):
        is_known = option.file_kind in (*MODEL_KINDS, *_SPECIAL) or option.name in allowed.PLAIN_TEXT
        is_known = is_known or option.name in allowed.FAMILYS_OWN
        return "" if is_known else "free text"
    if option.kind in ("int", "float", "number") and option.default is None and option.low is None:
        return "" if option.name in allowed.SEEDS else "no number is free to mean: not given"
    return ""


def of_options(options: Iterable[Option]) -> list[Widget]:
    """The widgets of some options: common ones first, advanced ones after; without those that are left out."""
    groups = {name: group for group, names in allowed.GROUPS.items() for name in names}
    made: dict[str, list[Widget]] = {}
    for option in options:
        if option.name in allowed.ARGUMENTS:
            made[option.name] = [_argument(option, argument) for argument in allowed.ARGUMENTS[option.name]]
        elif left_out(option):
            continue
        elif option.name in groups:
            made.setdefault(groups[option.name], [_group(groups[option.name])])
        else:
            made[option.name] = _of_option(option)
    found = [widget for widgets in made.values() for widget in widgets]
    return [widget for widget in found if not widget.advanced] + [widget for widget in found if widget.advanced]


def _of_option(option: Option) -> list[Widget]:
    if option.count:
        names = option.metavar if isinstance(option.metavar, tuple) else tuple(map(str, range(option.count)))
        return [_part(option, index, name.lower()) for index, name in enumerate(names)]
    if sockets.type_of(option) or sockets.from_stack(option):
        return []
    if option.file_kind in MODEL_KINDS:
        return [_file(option)]
    if option.file_kind in _SPECIAL:
        return [_SPECIAL[option.file_kind](option)]
    if option.name in allowed.FAMILYS_OWN:
        choices = allowed.FAMILYS_OWN[option.name]
        return [_plain(option, "choice", choices=choices, default=choices[0], unset=choices[0])]
    if option.choices or option.name in allowed.CHOICES:
        choices = option.choices or allowed.CHOICES[option.name]
        return [_choice(option, choices, unset=DEFAULT if option.default is None else None)]
    if option.kind == "bool":
        return [_plain(option, "bool", default=bool(option.default), unset=None)]
    if option.many:
        return [_numbers(option)]
    return [_text(option) if option.kind == "str" else _number(option)]


def _plain(option: Option, kind: Any, **more: Any) -> Widget:
    common = {"id": option.name, "label": display(option.name), "option": option.name, "advanced": option.advanced}
    return Widget(kind=kind, **{**common, "help": _help(option), **more})


def _group(group: str) -> Widget:
    names = allowed.GROUPS[group]
    return Widget(
        id=group, kind="choice", label=display(group), default=AUTO, unset=AUTO, choices=(AUTO, *names), option=group,
        help="Which implementation of attention is used. auto: the fastest exact one on this GPU; attn_8bit: for H100 "
        "and H200, faster there; rounds about as much as fp8_scaled.",
    )  # fmt: skip


def _argument(option: Option, argument: allowed.Argument) -> Widget:
    return Widget(
        id=argument.key, kind=argument.kind, label=display(argument.key), default=argument.unset,
        unset=argument.unset, low=argument.low, high=argument.high, step=argument.step, help=argument.help,
        advanced=True, option=option.name, argument=argument.key,
    )  # fmt: skip


def _file(option: Option) -> Widget:
    return _plain(
        option, "choice", listing=partial(paths.model_files, option.file_kind), default=NONE, unset=NONE,
        resolve=partial(paths.model_file, option.file_kind),
    )  # fmt: skip


def _prompts(option: Option) -> Widget:
    return _plain(
        option, "text", id="prompts", label="prompts", default="", unset="", multiline=True, advanced=False,
        resolve=prompts.write_prompts,
        help="One prompt per line; a line may end in options such as --w 832 --h 480 --f 81 --d 42 (the seed) --s 20.",
    )  # fmt: skip


def _state(option: Option) -> Widget:
    return _plain(
        option, "choice", listing=paths.states, default=paths.AUTO, resolve=paths.state_folder,
        help="Go on where an interrupted training stopped: same step, epoch, order of clips. auto: from the newest "
        "state of a training of this output_name that was stopped or broken off, or from the start if there is none.",
    )  # fmt: skip


def _log_folder(option: Option) -> Widget:
    return _plain(
        option, "bool", id="tensorboard", label="tensorboard", default=False, unset=False,
        resolve=lambda chosen: str(paths.work() / "tensorboard"),
        help="Also write the training's numbers for TensorBoard, into output/musubi/tensorboard.",
    )  # fmt: skip


_SPECIAL = {"prompts": _prompts, "state": _state, "folder": _log_folder}
"""Kinds of files with a special widget."""


def _choice(option: Option, choices: tuple[str, ...], *, unset: str | None) -> Widget:
    choices = choices if unset is None else (unset, *choices)
    default = allowed.DEFAULTS.get(option.name, unset or option.default)
    return _plain(option, "choice", choices=choices, default=default, unset=unset)


def _text(option: Option) -> Widget:
    note = " Empty: the default; a blank: none." if '; "" for none' in option.help else ""
    return _plain(
        option, "text", default=option.default or "", unset="" if option.nullable else None,
        multiline=option.name in allowed.MULTILINE, help=_help(option).replace('; "" for none', "") + note,
    )  # fmt: skip


def _numbers(option: Option) -> Widget:
    default = ", ".join(map(str, option.default))
    return _plain(
        option, "text", default=default, unset=default or "", resolve=partial(_listed, option),
        help=f"{_help(option)} Separated by commas.",
    )  # fmt: skip


def _listed(option: Option, text: str) -> list[int] | list[float]:
    """`100, 300` as numbers. Raises Refused for anything else."""
    kind = int if option.kind == "int" else float
    try:
        return [kind(word) for word in text.replace(",", " ").split()]
    except ValueError:
        shown = f"{option.name} needs numbers separated by commas, not {text[:100]!r}."
        raise Refused(shown, _help(option), names=(option.name,)) from None


def _part(option: Option, index: int, name: str) -> Widget:
    return _plain(
        option, option.kind, id=f"{option.name}_{name}", label=name, part=index, default=option.default[index],
        low=option.low, high=_high(option), step=allowed.STEPS.get(name), help=_help(option),
    )  # fmt: skip


def _number(option: Option) -> Widget:
    whole = option.kind == "int"
    low = -HIGHEST_FLOAT if option.low is None else option.low
    unset: int | None = None
    note = ""
    if option.name in allowed.SEEDS:
        return _plain(option, "int", default=0, low=0, high=option.high, seed=True, help=_without_default(option))
    if option.default is None:
        unset = 0 if low > 0 else -1
        low, note = unset, f" {unset}: {'the default' if 'Default:' in option.help else 'off'}."
    default: float = allowed.DEFAULTS.get(option.name, option.default if unset is None else unset)
    return _plain(
        option, "int" if whole else "float", default=default if whole else float(default), unset=unset, low=low,
        high=_high(option), step=1 if whole else _step(option), help=_help(option) + note,
    )  # fmt: skip


def _high(option: Option) -> float:
    if option.high is not None:
        return option.high
    return HIGHEST_INT if option.kind == "int" else HIGHEST_FLOAT


def _step(option: Option) -> float:
    """A tenth of the default's leading digit, so that the arrows are of use for 2e-6 as well as for 7.

    Never coarser than the default's last digit: ComfyUI shows no more digits than the step has, 0.999 as 1.00.
    """
    default = option.default or 1.0
    step = 0.01 if option.kind == "number" else 10.0 ** (math.floor(math.log10(abs(default))) - 1)
    last_digit = Decimal(str(default)).normalize().as_tuple().exponent
    return min(step, 10.0 ** int(last_digit))


def _help(option: Option) -> str:
    """The option's help in the words of a node, with the unit if the help does not name it."""
    text = words.of_node(allowed.HELP.get(option.name, option.help))
    counted = option.unit and option.kind != "bool" and option.unit.rstrip("s") not in text.lower()
    return text + (f" In {option.unit}." if counted else "")


def _without_default(option: Option) -> str:
    return _help(option).partition(" Default:")[0]


# --------------------------------------------------------------------------------------------- from values to options


class Refused(OptionError):
    """A value that a node does not take: from a linked node or a changed workflow."""


class NotOffered(Refused):
    """A value that is not in its widget's list. If it came from a workflow, ComfyUI refuses it too."""


def checked(widget: Widget, value: Any) -> Any:
    """The value if the widget could have given it. Raises Refused."""
    if widget.kind == "bool" and isinstance(value, bool):
        return value
    if widget.kind == "choice":
        if isinstance(value, str) and value in widget.values():
            return value
        raise _not_offered(widget, value)
    if widget.kind == "text" and isinstance(value, str):
        if "\0" in value or not is_utf_8(value):
            what = "a NUL character" if "\0" in value else "half a character, as a cut emoji leaves it"
            raise Refused(f"{widget.id} contains {what}.", "Type the text again.", names=(widget.id,))
        return value
    if widget.kind in ("int", "float") and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number_checked(widget, value)
    raise Refused(f"{widget.id} cannot be {value!r}.", widget.help, names=(widget.id,))


def _not_offered(widget: Widget, value: Any) -> NotOffered:
    shown = ", ".join(widget.values()[:12])
    return NotOffered(
        f"{widget.id} cannot be {str(value)[:200]!r}: it is not in the node's list.",
        f"Choose one of: {shown}." if widget.listing is None else "Choose from the list; R reads the folders again.",
        names=(widget.id,),
    )


def _number_checked(widget: Widget, value: float) -> float:
    if widget.kind == "int" and not float(value).is_integer():
        raise Refused(f"{widget.id} needs a whole number, not {value}.", widget.help, names=(widget.id,))
    low, high = widget.low, widget.high
    if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
        raise Refused(f"{widget.id} must be from {low} to {high}, not {value}.", widget.help, names=(widget.id,))
    return int(value) if widget.kind == "int" else float(value)


def read(inputs: Iterable[Input], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every widget's checked value by its id; what is not given has its default. Socket values are passed through."""
    found: dict[str, Any] = {}
    for item in inputs:
        if isinstance(item, Widget):
            value = given.get(item.id)
            found[item.id] = checked(item, item.default if value is None else value)
        elif isinstance(item, Switch):
            found[item.id] = _read_switch(item, given.get(item.id))
        else:
            found[item.id] = given.get(item.id)
    return found


def _read_switch(switch: Switch, value: Any) -> dict[str, Any]:
    chosen = value.get(switch.id) if isinstance(value, Mapping) else None
    if not isinstance(chosen, str) or chosen not in switch.cases:
        known = ", ".join(switch.cases)
        raise Refused(f"{switch.id} cannot be {chosen!r}.", f"Choose one of: {known}.", names=(switch.id,))
    return {switch.id: chosen, **read(switch.cases[chosen], value)}


def to_options(widgets: Iterable[Widget], values: Mapping[str, Any], *, changed_only: bool = False) -> dict[str, Any]:
    """Option values from checked widget values. `changed_only` leaves out those at their defaults."""
    found: dict[str, Any] = {}
    for widget in widgets:
        value = values[widget.id]
        if not widget.option or (changed_only and value == widget.default):
            continue
        if widget.unset is not None and value == widget.unset:
            continue
        if widget.option in allowed.GROUPS:
            found[value] = True
        elif widget.argument:
            found.setdefault(widget.option, []).append(f"{widget.argument}={value!r}")
        elif widget.part is not None:
            found.setdefault(widget.option, []).append(value)
        elif widget.resolve is not None:
            found[widget.option] = widget.resolve(value)
        else:
            found[widget.option] = value.strip() if widget.kind == "text" else value
    return found
