"""The ComfyUI side of the pack: nodes, the bridge to the engine, routes for the page. Loaded inside ComfyUI's Python.

`catalogue.py` lists the nodes, `run.py` is the only file that starts a process, `host.py` the only one that asks
something of a running ComfyUI. Nothing here computes: the engine does, in its own environment.
"""
