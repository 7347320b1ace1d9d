"""Loading a model whose streamed blocks wait on disk: at most one of their tensors is in main memory at a time.

A tensor that is used exactly as a safetensors file has it is mapped there: neither read nor written. One that is
changed on the way (cast, merged, quantised to fp8) goes to a scratch file, one per loaded model, whose size is known
from headers before anything is read. Everything else is loaded to the device, or to where its module waits.
Knows nothing of how blocks are read again (waiting.py). Given up: keeping changed tensors for the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from ..parts.mapped_files import Scratch, aligned, map_file
from ..parts.weights import Stored, WorkedOn
from .fp8 import SCALE, QuantizeOnLoad
from .rules import stays_in_file
from .slots import lay_out


class LeaveOnDisk(WorkedOn):
    """A transform for `load_into` (parts/weights.py) that leaves some blocks' tensors on disk, transformed by `inner`.

    If `inner` quantises, its scales stay there too. After loading, `mapped_bytes`: those used as the checkpoint has
    them; `scratch_bytes`: size of the scratch file.
    """

    def __init__(
        self, model: nn.Module, blocks: Iterable[nn.Module], inner: Callable[[str, Tensor], Tensor] | None, *,
        changed: Collection[str], device: torch.device,
    ) -> None:  # fmt: skip
        """`model`: like the one to be loaded in names, shapes and dtypes; it may be on "meta". `blocks`: those of its
        blocks that stay on disk. `changed`: names that `inner` may change. `device`: where `inner` works."""
        super().__init__(inner or _as_it_is, device)
        self._quantizer = inner if isinstance(inner, QuantizeOnLoad) else None
        self._changed = changed
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        pieces = [piece for block in blocks for piece in lay_out(block)[0]]
        self._due = {names[id(piece.parameter)]: aligned(piece.parameter.nbytes) for piece in pieces}
        self._scratch: Scratch | None = None
        self.mapped_bytes = self.scratch_bytes = 0

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        whole = super().__call__(name, tensor)
        path = name.removesuffix(".weight")
        if self._quantizer is not None and (scale := f"{path}.{SCALE}") in self._due:
            self._quantizer.scales[path] = self._put(scale, self._quantizer.scales[path])
        return whole

    def instead(self, name: str, own: Tensor, stored: Stored | None) -> Tensor | None:
        """The tensor, mapped from the checkpoint; None if it has to be read."""
        if name not in self._due or stored is None or not own.numel():
            return None
        file, entry = stored
        if not stays_in_file(changed=name in self._changed, stored_as=entry.dtype, used_as=own.dtype):
            return None
        self.mapped_bytes += self._due.pop(name)
        return map_file(file).tensor(entry.start, entry.dtype, entry.shape)

    def keep(self, name: str, tensor: Tensor) -> Tensor | None:
        return self._put(name, tensor) if name in self._due else None

    def _put(self, name: str, tensor: Tensor) -> Tensor:
        if self._scratch is None:
            self.scratch_bytes = sum(self._due.values())
            self._scratch = Scratch(self.scratch_bytes)
        del self._due[name]
        return self._scratch.put(tensor)


def _as_it_is(name: str, tensor: Tensor) -> Tensor:
    return tensor
