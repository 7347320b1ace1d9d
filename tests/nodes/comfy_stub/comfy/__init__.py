"""Stands for ComfyUI's package comfy."""
