"""Wan 2.1 and Wan 2.2 A14B video models: from text, images, control videos; 1.3B and 14B.

Paper: "Wan: Open and Advanced Large-Scale Video Generative Models", arXiv 2503.20314.
Licence of code and weights: Apache-2.0.
Numbers are checked against Wan-Video/Wan2.1 at commit 9737cba9; for two experts against diffusers 0.42.1.
"""
