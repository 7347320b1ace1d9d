"""HunyuanVideo: text-to-video 13B, and the image-to-video models built on it (SkyReels V1 among them).

Paper: "HunyuanVideo: A Systematic Framework For Large Video Generative Models", arXiv 2412.03603.
Licence of Tencent's code and weights: Tencent Hunyuan Community License; SkyReels V1 weights have their own. Written
from the paper, from tensor shapes, from recorded numbers and against diffusers (Apache-2.0); no code of Tencent's is
in here.
Numbers are checked against Tencent/HunyuanVideo at commit fa14b001 and diffusers 0.42.1.
"""
