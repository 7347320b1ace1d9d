"""The nodes without a ComfyUI: `comfy_stub/` stands for the few of its modules that they ask."""
