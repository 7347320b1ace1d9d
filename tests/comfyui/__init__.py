"""Tests in a real ComfyUI server and a real browser. Skipped, with the reason, where COMFYUI_PATH names no checkout."""
