"""torch.compile, block by block: one block's graph is compiled once and serves all that look alike.

Blocks that run in pieces have one piece compiled instead: all of them look alike, across blocks too.
Knows the names that the command line uses. Given up: compiling the whole model, which would have to see through
streaming and checkpointing.
"""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch._functorch import config as functorch

from ..contract.errors import OptionError
from .pieces import IN_PIECES
from .recomputing import ROOT, root_named, tell_what_learns
from .slots import CHECKPOINTED, COMPILED_WITH_GRAPHS, STREAMED

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
FIXED_ADDRESSES = ("reduce-overhead", "max-autotune")
"""Modes that record CUDA graphs, which need every weight to stay at its address."""


def compile_blocks(
    blocks: nn.ModuleList,
    *,
    backend: str = "inductor",
    mode: str = "default",
    dynamic: bool | None = None,
    fullgraph: bool = False,
    cache_size_limit: int | None = None,
) -> None:
    """Compile each block's forward at its first call. Call it after adapters are attached, before the rest.

    dynamic: True compiles for changing shapes, False for each shape, None (auto) finds out. cache_size_limit: how
    many compiled versions a block may have before it runs uncompiled. Raises OptionError for unknown names.
    """
    if mode not in MODES:
        raise OptionError(f"There is no compile mode {mode!r}.", hint=f"Choose --compile_mode from {', '.join(MODES)}.")
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise OptionError(
            f"There is no compile backend {backend!r}.", hint=f"Choose --compile_backend from {', '.join(known)}."
        )
    if cache_size_limit is not None:
        torch._dynamo.config.cache_size_limit = cache_size_limit
    _find_graphs_again()
    # other backends take no mode
    options = {"mode": mode} if backend == "inductor" else {}
    compiled = partial(torch.compile, backend=backend, dynamic=dynamic, fullgraph=fullgraph, **options)
    recorded = backend == "cudagraphs" or (backend == "inductor" and mode in FIXED_ADDRESSES)
    if recorded:  # results of such a graph do not outlive its next run
        tell_what_learns(blocks, lambda block: None)
    for block in blocks:
        if hasattr(block, CHECKPOINTED) or hasattr(block, STREAMED):
            raise ValueError("compile_blocks comes before stream_blocks and checkpoint_blocks")
        for part in getattr(block, IN_PIECES, ()):
            part.compute = compiled(part.compute)
            part.root = compiled(part.root)
        if not getattr(block, IN_PIECES, ()):
            plain = block.forward
            block.forward = compiled(plain)  # type: ignore[method-assign]
            setattr(block, ROOT, partial(compiled(root_named(type(block).__name__)), plain))
        if recorded:
            setattr(block, COMPILED_WITH_GRAPHS, True)


def _find_graphs_again() -> None:
    """Let PyTorch cache graphs with custom autograd functions, which it does not by default: most of a block would be
    traced again at every start.

    Its keys contain these functions' code, but only the names of custom operators, whose gradients and shapes are in a
    graph too. So a hash of the engine's sources is added to the keys: every change of them recompiles. Processes that
    compile kernels get it from the environment, since the fastest form of each kernel is remembered under it too.
    """
    if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):  # PyTorch 2.9 on
        functorch.autograd_cache_allow_custom_autograd_functions = True
        settings = torch.compiler.config
        if SOURCES not in settings.cache_key_tag:
            settings.cache_key_tag = " ".join(filter(None, (settings.cache_key_tag, SOURCES)))
        os.environ["TORCH_COMPILE_CACHE_KEY_TAG"] = settings.cache_key_tag


def sources(folder: Path) -> str:
    """A hash of the Python files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.read_bytes())
    return f"musubi-{found.hexdigest()[:16]}"


SOURCES = sources(Path(__file__).resolve().parents[1])
"""The engine's, when this is imported: a process keeps the code that it has loaded when files change."""
