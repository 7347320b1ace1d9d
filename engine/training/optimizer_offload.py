"""`--optimizer_cpu_offload`: an optimizer's state, and gradients, wait in main memory until all take their step.

While a step's loss is computed nobody looks at the state, and of gradients only one block's are made at a time: both
leave the GPU to the blocks, and come back when little else is there. The numbers are the same bit for bit. Works with
every optimizer that keeps its tensors in `state`; what bitsandbytes pages by itself stays where it is. Given up: a step
that the CPU computes, which would take longer than the copies.

Hundreds of small tensors lie together in large pieces of main memory, and are copied by the piece, there and back: one
by one they come at half the speed, and on the GPU would leave holes that no block's activations fit in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..ops.host import host_bytes
from .parameters import call_with_gradients, parameters_of

FLAG = "--optimizer_cpu_offload"
SMALLEST = 1 << 12
"""Bytes: smaller tensors are not worth a copy."""
_PIECE = 1 << 25
"""Bytes that are locked, which takes the system long, and copied at a time: more only where one tensor is larger."""

Key = tuple[Tensor, str]
"""A parameter, and the name of a tensor in its state; "" is its gradient."""


class OptimizerOffload:
    """Keeps what an optimizer needs in main memory, beside the one step for which it is fetched.

    Its state goes back by itself, after each step and after loading. With `gradients`, those leave the device as soon
    as each is whole, and `gather` has them back before anybody asks for them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, gradients: bool) -> None:
        self._optimizer = optimizer
        self._gradients: dict[Tensor, Tensor] = {}
        self._places: dict[Key, Tensor] = {}  # in main memory; what of a state waits is one of them
        self._fetched: dict[Key, tuple[Tensor, int]] = {}  # what of a state is on the device for now, and its address
        self._pieces: list[tuple[Tensor, Tensor]] = []  # where that lies: bytes in main memory, and on the device
        self._piece = torch.empty(0, dtype=torch.uint8)  # in main memory, not given away yet
        self._side: torch.cuda.Stream | None = None
        optimizer.register_step_pre_hook(lambda *_: self._fetch(with_gradient=True))
        optimizer.register_step_post_hook(lambda *_: self._rest())
        # not by hooks, which bitsandbytes' loading does not call
        load, read = optimizer.load_state_dict, optimizer.state_dict
        optimizer.load_state_dict = self._loading(load)  # type: ignore[method-assign]
        optimizer.state_dict = self._reading(read)  # type: ignore[method-assign]
        if gradients:
            call_with_gradients(parameters_of(optimizer), self._hold)

    def gather(self) -> None:
        """Every parameter has its gradient again."""
        self._wait()
        gradients, _ = _on_the_device({(parameter, ""): host for parameter, host in self._gradients.items()})
        for (parameter, _), gradient in gradients.items():
            parameter.grad = gradient
        self._gradients.clear()

    def on_the_device(self, change: Callable[..., None]) -> Callable[..., None]:
        """What does `change` while the whole state is on the device."""

        def changed(*arguments: Any) -> None:
            self._fetch()
            change(*arguments)
            self._rest()

        return changed

    def _loading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(state: dict[str, Any]) -> None:
            load(state)
            self._rest()

        return loaded

    def _reading(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def copied() -> dict[str, Any]:
            if self._side is not None:
                self._side.synchronize()  # the CPU reads what is copied to it
            found = read()
            # to save a part of a large piece of memory would be to save all of it
            return {**found, "state": {key: tree_map(_copied, state) for key, state in found["state"].items()}}

        return copied

    @torch.no_grad()
    def _hold(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.nbytes < SMALLEST:
            return
        if parameter in self._gradients:  # of another micro-batch
            self._wait()
            gradient = self._gradients[parameter].to(parameter.device, non_blocking=True).add_(gradient)
        self._gradients[parameter] = self._send((parameter, ""), gradient)
        parameter.grad = None

    @torch.no_grad()
    def _rest(self) -> None:
        for host, piece in self._pieces:
            self._copy(host, piece)
        for (parameter, name), (value, address) in self._fetched.items():
            state = self._optimizer.state.get(parameter, {})
            if state.get(name) is value and value.data_ptr() == address:  # went back with its piece
                state[name] = self._places[parameter, name]
        for parameter in parameters_of(self._optimizer):
            state = self._optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not self._waits((parameter, name), value) and _is_worth_it(value, parameter):
                    state[name] = self._send((parameter, name), value)
        self._fetched.clear()
        self._pieces.clear()

    def _fetch(self, *, with_gradient: bool = False) -> None:
        if self._pieces:  # of a step that broke off
            self._rest()
        self._wait()
        wanted = {}
        for parameter in parameters_of(self._optimizer):
            if with_gradient and parameter.grad is None:
                continue  # an expert that waits
            for name, value in self._optimizer.state.get(parameter, {}).items():
                if self._waits((parameter, name), value):
                    wanted[parameter, name] = value
        found, self._pieces = _on_the_device(wanted)
        for (parameter, name), value in found.items():
            self._optimizer.state[parameter][name] = value
            self._fetched[parameter, name] = value, value.data_ptr()

    def _waits(self, key: Key, value: Any) -> bool:
        return value is not None and value is self._places.get(key)

    def _send(self, key: Key, value: Tensor) -> Tensor:
        """A copy in main memory, whole when `_wait` was called. The same place each time."""
        return self._copy(self._place(key, value), value)

    def _copy(self, host: Tensor, value: Tensor) -> Tensor:
        if not value.is_cuda:
            return host.copy_(value)
        if self._side is None:
            self._side = torch.cuda.Stream(value.device)
        self._side.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self._side):
            host.copy_(value, non_blocking=True)
        value.record_stream(self._side)  # freed by and by, which does here: it is little, or little else is there
        return host

    def _wait(self) -> None:
        """Let the device compute only what comes after the copies to main memory."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)

    def _place(self, key: Key, value: Tensor) -> Tensor:
        found = self._places.get(key)
        if found is None or found.shape != value.shape or found.dtype != value.dtype:
            found = self._bytes(value.nbytes, pinned=value.is_cuda).view(value.dtype).view(value.shape)
            self._places[key] = found
        return found

    def _bytes(self, count: int, *, pinned: bool) -> Tensor:
        if count > len(self._piece):
            self._piece = host_bytes(max(count, _PIECE), pinned=pinned, advice=f"Leave out {FLAG}")
        found, self._piece = self._piece[:count], self._piece[-(-count // 64) * 64 :]
        return found


def _on_the_device(places: dict[Key, Tensor]) -> tuple[dict[Key, Tensor], list[tuple[Tensor, Tensor]]]:
    """What lies at these places, on the device of its parameter, and the pieces (there, here) that it came in: of each
    piece of main memory, all from the first to the last of the places."""
    together: dict[int, list[Key]] = defaultdict(list)
    for key, place in places.items():
        together[place.untyped_storage().data_ptr()].append(key)
    found, pieces = {}, []
    for keys in together.values():
        first, end = _span(places[key] for key in keys)
        storage = places[keys[0]].untyped_storage()
        host = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage, first, (end - first,), (1,))
        piece = host.to(keys[0][0].device, non_blocking=True, copy=True)
        pieces.append((host, piece))
        for key in keys:
            place = places[key]
            start, stop = _span([place])
            found[key] = piece[start - first : stop - first].view(place.dtype).view(place.shape)
    return found, pieces


def _span(places: Iterable[Tensor]) -> tuple[int, int]:
    """Bytes of their storage from the first on, and the end of the last."""
    starts, ends = zip(*((at := one.storage_offset() * one.itemsize, at + one.nbytes) for one in places), strict=True)
    return min(starts), max(ends)


def _is_worth_it(value: Any, parameter: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.device != parameter.device or getattr(value, "is_paged", False):
        return False
    return value.nbytes >= SMALLEST


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.device.type == "cpu" else value
