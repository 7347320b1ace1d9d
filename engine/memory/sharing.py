"""A frozen base split over several processes: each keeps a part of every block, and together they have the whole.

A block's weights are taken as bytes, whatever their number formats, and cut into as many equal parts as there are
processes. While a model is loaded, each process keeps its part of every tensor and drops the rest (`Shares`). Shortly
before a block runs, forward or backward, one exchange gathers its parts into a slot (slots.py); those of the next block
are gathered while this one computes. Frozen weights have no gradients, so nothing is ever sent back, and blocks compute
with the same bytes as without sharing: the results are equal bit for bit.

Every gathering needs all processes. In training they run the same blocks in the same order, so they need not tell each
other which; that they did is checked after each step (`gathered`). When they do not, because some have no batch left or
only number 0 makes samples, those that run the model are `led` by number 0, which announces what it gathers, and the
others `follow` it.

Why not torch's FSDP2 (fully_shard): it is made for weights that train. Its groups have one number format, where ours
mix fp8 codes with float32 scales; it wraps the modules that adapters, streaming and checkpoints wrap here in an order
of their own; and it cannot handle processes that run a block more often than others. What remains of it for frozen
weights is the exchange itself. Given up: sharing what is outside of the blocks (a few percent, which each process has
in full), parts that wait in main memory, several experts that take turns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..contract.errors import OptionError
from ..parts.weights import Stored
from .fp8 import SCALE, QuantizeOnLoad
from .slots import ALIGNMENT, BlockSlots, Piece, check_block, lay_out

FLAG = "--shard_base"
_DONE = -1


class Company(Protocol):
    """The processes that share the base; implemented in training/group.py."""

    number: int
    count: int

    def gather(self, whole: Tensor, part: Tensor) -> None:
        """Fill `whole` with the parts of all processes, in their order."""

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor with that of process 0."""


class Shares:
    """This process's parts of the blocks' weights, filled tensor by tensor while the model is loaded."""

    def __init__(self, company: Company, *, device: torch.device) -> None:
        self.company, self.device = company, device
        self.parts: list[Tensor] = []
        """For each block, this process's part of its bytes: the `company.number`-th."""
        self._places: dict[str, tuple[int, Piece]] = {}
        self._due: set[str] = set()

    @property
    def device_bytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts)

    def outside_bytes(self, model: nn.Module) -> int:
        """Bytes of the frozen weights that each process has whole."""
        others = (value for name, value in model.named_parameters() if name not in self._places)
        return sum(value.nbytes for value in others if not value.requires_grad)

    def plan(self, model: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Allocate the parts for a model with the names, shapes and dtypes of this one, which may be on "meta"."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for number, block in enumerate(blocks):
            pieces, size = lay_out(block)
            step = self.company.count * ALIGNMENT
            self.parts.append(torch.zeros(-(-size // step) * ALIGNMENT, dtype=torch.uint8, device=self.device))
            self._places.update({names[id(piece.parameter)]: (number, piece) for piece in pieces})
        self._due = set(self._places)

    def needs(self, name: str) -> bool:
        """Whether this process has to read a tensor: it is outside of the blocks, or some of it is kept here."""
        return name not in self._places or len(self._kept(name)) > 0

    def absent(self, name: str) -> Tensor:
        """The placeholder of a block's tensor between its turns: its shape, dtype and device without its memory."""
        self._due.discard(name)
        return absent(self._places[name][1], self.device)

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """Keep this process's part of a block's tensor and return its placeholder; other tensors are returned as they
        are."""
        if name not in self._places:
            return tensor
        number, piece = self._places[name]
        kept, part = self._kept(name), self.parts[number]
        if kept:
            first = part.nbytes * self.company.number
            whole = tensor.to(piece.dtype).contiguous().view(piece.shape).flatten().view(torch.uint8)
            inside = whole[kept.start - piece.start : kept.stop - piece.start]
            part[kept.start - first : kept.stop - first].copy_(inside)
        return self.absent(name)

    def check(self, pieces: Sequence[Sequence[Piece]]) -> None:
        """ValueError unless these are the blocks that were planned, and all of their weights were loaded."""
        planned = list(self._places.values())
        found = [(number, piece) for number, block in enumerate(pieces) for piece in block]
        if len(found) != len(planned) or not all(
            ours == theirs and one.looks_like(other)
            for (ours, one), (theirs, other) in zip(planned, found, strict=True)
        ):
            raise ValueError("these blocks are not those that the parts were planned for")
        if self._due:
            raise ValueError(f"not loaded: {', '.join(sorted(self._due)[:3])}")

    def _kept(self, name: str) -> range:
        """The bytes of its block that are both this tensor's and this process's."""
        number, piece = self._places[name]
        length = self.parts[number].nbytes
        first = length * self.company.number
        return range(max(piece.start, first), min(piece.stop, first + length))


class ShareOnLoad:
    """A transform for `load_into` (parts/weights.py) that keeps a part of each tensor, after `inner` has seen it whole.

    Tensors of which nothing is kept are not even read. If `inner` quantises, its scales are split too.
    """

    def __init__(self, shares: Shares, inner: Callable[[str, Tensor], Tensor] | None) -> None:
        self._shares, self._inner = shares, inner
        self._quantizer = inner if isinstance(inner, QuantizeOnLoad) else None

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        whole = tensor if self._inner is None else self._inner(name, tensor)
        if (path := self._quantized(name)) and self._quantizer is not None:
            scale = f"{path}.{SCALE}"
            self._quantizer.scales[path] = self._shares.take(scale, self._quantizer.scales[path])
        return self._shares.take(name, whole)

    def instead(self, name: str, own: Tensor, stored: Stored | None) -> Tensor | None:
        """The placeholder of a tensor that need not be read; None for one that must be."""
        path = self._quantized(name)
        scale = f"{path}.{SCALE}"
        if self._shares.needs(name) or (path and self._shares.needs(scale)):
            return None
        if path and self._quantizer is not None:
            self._quantizer.scales[path] = self._shares.absent(scale)
        return self._shares.absent(name)

    def _quantized(self, name: str) -> str:
        """The path of the layer whose weight this is, if it becomes codes and a scale; else ""."""
        path = name.removesuffix(".weight")
        wanted = self._quantizer is not None and path != name and path in self._quantizer.names
        return path if wanted else ""


def share_blocks(blocks: nn.ModuleList, shares: Shares, *, slots: int = 2) -> SharedBlocks:
    """Make the blocks, which were loaded through `shares`, gather their weights whenever they run.

    slots: buffers on the device; 2 or more overlap gathering with computing. Call it in all processes, after
    `compile_blocks` and before `checkpoint_blocks`. The returned object lives as long as the blocks.
    OptionError: processes have made different choices.
    """
    for block in blocks:
        check_block(block, FLAG)
    ours = torch.tensor([shares.device_bytes, slots], device=shares.device)
    theirs = ours.clone()
    shares.company.copy_from_first([theirs])
    if not torch.equal(ours, theirs):
        raise OptionError(
            f"{FLAG} needs the same number formats and buffers in all processes, but they differ.",
            "--memory auto chooses for each GPU separately: leave it out, and give the options that `plan` shows.",
            names=("shard_base", "memory"),
        )
    return SharedBlocks(blocks, shares, slots=slots)


class SharedBlocks(BlockSlots):
    """The blocks of a shared base."""

    def __init__(self, blocks: nn.ModuleList, shares: Shares, *, slots: int) -> None:
        pieces = [lay_out(block)[0] for block in blocks]
        shares.check(pieces)
        self._company, self._parts = shares.company, shares.parts
        self._absent = [[absent(piece, shares.device) for piece in block] for block in pieces]
        self._word = torch.zeros(2, dtype=torch.int64, device=shares.device)
        self._led = False
        self.gathered = 0
        """A hash of which blocks were gathered so far, and in which order."""
        if shares.device.type == "cuda":
            torch.cuda.synchronize(shares.device)  # the parts are complete before another stream reads them
        largest = self._company.count * max(part.nbytes for part in self._parts)
        super().__init__(list(blocks), pieces, bytes_each=largest, slots=slots, device=shares.device)

    @contextlib.contextmanager
    def led(self) -> Iterator[None]:
        """For number 0 and others that run the model, in the same way, while some processes do not."""
        self._led = True
        yield  # an exception ends the process, and the others with it
        self._led = False
        with self._beside():
            self._say(_DONE, 0)

    def follow(self) -> None:
        """For the other processes meanwhile: hand over this one's parts as number 0 asks for them, until it is done."""
        for event in self._used:
            self._record(event)
        self._current = None
        while True:
            with self._beside():
                self._company.copy_from_first([self._word])
                position, slot = self._word.tolist()
            if position == _DONE:
                return
            self._bring(position, slot)

    def _say(self, position: int, slot: int) -> None:
        """Announce what is gathered next. Number 0's announcement counts; others that run the model receive it.

        Always on the side stream, where it cannot overtake earlier announcements.
        """
        self._word[0].fill_(position)  # by a kernel, as a copy would have to wait for the device
        self._word[1].fill_(slot)
        self._company.copy_from_first([self._word])

    def _fill(self, position: int, slot: int) -> None:
        if self._led:
            self._say(position, slot)
        self.gathered = hash((self.gathered, position))
        part = self._parts[position]
        self._company.gather(self._slots[slot][: self._company.count * part.nbytes], part)

    def _elsewhere(self, position: int) -> Sequence[Tensor]:
        return self._absent[position]


def absent(piece: Piece, device: torch.device) -> Tensor:
    """A tensor of the piece's shape and dtype without its memory, all NaN, so that use by mistake shows."""
    value = torch.full((piece.dtype.itemsize,), 0xFF, dtype=torch.uint8, device=device)
    return value.view(piece.dtype)[0].expand(piece.shape)
