"""Stands for ComfyUI's package comfy_execution."""
