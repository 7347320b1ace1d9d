"""`--optimizer_cpu_offload`: an optimizer's state, and gradients, wait in main memory until all take their step.

While a step's loss is computed nobody looks at the state, and of gradients only one block's are made at a time: both
leave the GPU to the blocks, and come back when little else is there. The numbers are the same bit for bit. Works with
every optimizer that keeps its tensors in `state`; what bitsandbytes pages by itself stays where it is. Given up: a step
that the CPU computes, which would take longer than the copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..ops.host import host_bytes
from .parameters import call_with_gradients, parameters_of

FLAG = "--optimizer_cpu_offload"
SMALLEST = 1 << 12
"""Bytes: smaller tensors are not worth a copy."""
_CHUNK = 1 << 25
"""Bytes of main memory that are locked at a time: each call takes the system long."""


class OptimizerOffload:
    """Keeps what an optimizer needs in main memory, beside the one step for which it is fetched.

    Its state goes back by itself, after each step and after loading. With `gradients`, those leave the device as soon
    as each is whole, and `gather` has them back before anybody asks for them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, gradients: bool) -> None:
        self._optimizer = optimizer
        self._gradients: dict[Tensor, Tensor] = {}
        self._places: dict[tuple[Tensor, str], Tensor] = {}  # in main memory; what of a state waits is one of them
        self._chunk = torch.empty(0, dtype=torch.uint8)
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
        for parameter, host in self._gradients.items():
            parameter.grad = host.to(parameter.device, non_blocking=True, copy=True)
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
        self._gradients[parameter] = self._send(parameter, "", gradient)
        parameter.grad = None

    @torch.no_grad()
    def _rest(self) -> None:
        for parameter in parameters_of(self._optimizer):
            state = self._optimizer.state.get(parameter, {})
            for name, value in state.items():
                if not self._waits(parameter, name, value) and _is_worth_it(value, parameter):
                    state[name] = self._send(parameter, name, value)

    def _fetch(self, *, with_gradient: bool = False) -> None:
        self._wait()
        for parameter in parameters_of(self._optimizer):
            if with_gradient and parameter.grad is None:
                continue  # an expert that waits
            state = self._optimizer.state.get(parameter, {})
            for name, value in state.items():
                if self._waits(parameter, name, value):
                    state[name] = value.to(parameter.device, non_blocking=True, copy=True)

    def _waits(self, parameter: Tensor, name: str, value: Any) -> bool:
        return value is not None and value is self._places.get((parameter, name))

    def _send(self, parameter: Tensor, name: str, value: Tensor) -> Tensor:
        """A copy in main memory, whole when `_wait` was called. The same place each time."""
        host = self._place(parameter, name, value)
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

    def _place(self, parameter: Tensor, name: str, value: Tensor) -> Tensor:
        found = self._places.get((parameter, name))
        if found is None or found.shape != value.shape or found.dtype != value.dtype:
            found = self._bytes(value.nbytes, pinned=value.is_cuda).view(value.dtype).view(value.shape)
            self._places[parameter, name] = found
        return found

    def _bytes(self, count: int, *, pinned: bool) -> Tensor:
        if count > len(self._chunk):
            self._chunk = host_bytes(max(count, _CHUNK), pinned=pinned, advice=f"Leave out {FLAG}")
        found, self._chunk = self._chunk[:count], self._chunk[-(-count // 64) * 64 :]
        return found


def _is_worth_it(value: Any, parameter: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.device != parameter.device or getattr(value, "is_paged", False):
        return False
    return value.nbytes >= SMALLEST


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.device.type == "cpu" else value
