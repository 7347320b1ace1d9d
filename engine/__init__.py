"""The engine: datasets, caches, LoRA training and generation for video models, as `python -m engine <verb> …`.

Importing it costs nothing; each command imports what it needs.
"""

__version__ = "0.1.0"
