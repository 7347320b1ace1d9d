"""Fitting a large frozen model onto a small card: fp8 weights, block streaming, checkpointing, compilation.

Everything acts on `blocks(dit)`, a list of modules with frozen parameters; no family knows of it. Apply in this order,
each wrapping the result of the one before: `quantize_model` (or `QuantizeOnLoad` while loading), adapters,
`compile_blocks`, `stream_blocks`, `checkpoint_blocks`.
"""
