"""What the pocket models have in common: what they know, what they have never seen, files that two families share.

They make 17 frames of 64x64 pixels from captions of a small vocabulary: a shape or two, their colours and patterns, how
they move, what is behind them. They have never seen hexagons or stripes: those are left for a LoRA to learn. Does not
know where the files are; zoo/README.md says how they were made. Given up: any other size or length, and words that they
were not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

SIZE, FRAMES, SHIFT = 64, 17, 3.0
CONCEPT = "striped hexagons"
DATASET = {"resolution": [SIZE, SIZE], "batch_size": 4}
TRAINING = {
    "max_train_steps": 250, "learning_rate": 1e-3, "lr_scheduler": "cosine", "network_dim": 32, "network_alpha": 32.0,
    "timestep_sampling": "shift", "discrete_flow_shift": SHIFT,
}  # fmt: skip
"""The noise levels are those that the models themselves were trained on."""
GENERATION = {"video_size": [SIZE, SIZE], "video_length": FRAMES, "flow_shift": SHIFT}
PROMPTS = (
    "a large striped yellow hexagon goes down on a light green background",
    "a big striped red hexagon moves to the right on a light blue background",
    "a large striped red hexagon stays still on a white background",
)
HUNYUAN_VAE = {"vae": "pocket_hunyuan_vae.safetensors"}
HUNYUAN_TEXTS = {
    "text_encoder1": "pocket_hunyuan_llama.safetensors",
    "text_encoder2": "pocket_hunyuan_clip.safetensors",
}
CLIP_TOKENIZER = "tokenizer_2/tokenizer.json"
"""Beside text_encoder2."""


def paths(files: Mapping[str, str], folder: str | Path) -> dict[str, str]:
    """The paths of `files` (option -> file name) in a folder, by option."""
    return {option: str(Path(folder) / name) for option, name in files.items()}
