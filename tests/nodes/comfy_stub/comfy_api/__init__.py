"""Stands for ComfyUI's package comfy_api."""
