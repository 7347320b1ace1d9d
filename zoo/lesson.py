"""Loss and gradients of one batch, recorded as a CUDA graph: small networks wait for Python more than for the GPU.

A recording needs batches of one size and work that never asks the GPU for a number. Where recording fails, the work is
done as it is, slower.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Work = Callable[..., tuple[Tensor, ...]]
_REHEARSALS = 3  # in which kernels are chosen and compiled


class Lesson:
    """`work` takes tensors and returns some, the loss first; a call leaves its gradients at `weights`.

    With `recorded`, results are overwritten by the next call, and gradients must be changed in place only.
    """

    def __init__(self, work: Work, weights: Sequence[Tensor], *, recorded: bool) -> None:
        self._work, self._weights, self._wanted = work, weights, recorded
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def recorded(self) -> bool:
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self._wanted and self._graph is None:
            self._wanted = self._record(inputs)
        if self._graph is None:
            return self._plain(inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._outputs

    def _plain(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for weight in self._weights:
            weight.grad = None
        outputs = self._work(*inputs)
        outputs[0].backward()
        return tuple(output.detach() for output in outputs)

    def _record(self, inputs: Sequence[Tensor]) -> bool:
        self._inputs = [value.clone() for value in inputs]
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_REHEARSALS):
                self._plain(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._plain(self._inputs)
        except RuntimeError as error:
            warnings.warn(f"This step cannot be recorded, so training is slower: {error}", stacklevel=2)
            torch.cuda.synchronize()
            return False
        self._graph = graph
        return True
