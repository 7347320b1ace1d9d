"""Full-size models with random weights through the ordinary commands: seconds a step and peak memory.

`python -m tests.gpu.full_size OUT.json [CASE …]` writes checkpoints in the layouts of the public files, caches of
random latents, and runs `python -m engine train` and `generate` on them. Needs a CUDA GPU and 35 GiB of disk under
--folder; neither OpenCV nor text encoders of the real size. `--tiny` does the same on small models, without a GPU.
`--list` names the cases; the beginning of a name chooses all that begin so.
"""
