"""Wan 2.1 video models: text-to-video and text-to-image, 1.3B and 14B.

Paper: "Wan: Open and Advanced Large-Scale Video Generative Models", arXiv 2503.20314.
Licence of code and weights: Apache-2.0.
Numbers are checked against Wan-Video/Wan2.1 at commit 9737cba9.
"""
