"""Published numbers of step caches for HunyuanVideo, used for FramePack too, whose blocks are the same. No torch.

Ratios are MagCache's (Zehong-Ma/MagCache, Apache 2.0), for 50 steps; musubi-tuner uses those of 540p for FramePack.
TeaCache's polynomial (ali-vilab/TeaCache, Apache 2.0) is for the image tokens as the first block modulates them;
FramePack's own demo has the same one (lllyasviel/FramePack, Apache 2.0). The threshold of 0.06 for the first block is
ParaAttention's for HunyuanVideo.
"""

from __future__ import annotations

WIDTH_AND_BLOCKS = (3072, 20, 40)  # width, double-stream and single-stream blocks
RATIOS_540P = (
    1.0, 1.06971, 1.29073, 1.11245, 1.09596, 1.05233, 1.01415, 1.05672, 1.00848, 1.03632, 1.02974, 1.00984, 1.03028,
    1.00681, 1.06614, 1.05022, 1.02592, 1.01776, 1.02985, 1.00726, 1.03727, 1.01502, 1.00992, 1.03371, 0.9976, 1.02742,
    1.0093, 1.01869, 1.00815, 1.01461, 1.01152, 1.03082, 1.0061, 1.02162, 1.01999, 0.99063, 1.01186, 1.0217, 0.99947,
    1.01711, 0.9904, 1.00258, 1.00878, 0.97039, 0.97686, 0.94315, 0.97728, 0.91154, 0.86139, 0.76592,
)  # fmt: skip
RATIOS_720P = (
    1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679, 1.02556,
    1.00908, 1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968, 1.00544, 1.02822,
    1.00689, 1.02119, 1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146, 1.0018,
    1.01687, 0.99436, 1.00283, 1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456,
)  # fmt: skip
TEACACHE = (7.33226126e2, -4.01131952e2, 6.75869174e1, -3.149878, 9.61237896e-2)
FIRST_BLOCK_THRESHOLD = 0.06
