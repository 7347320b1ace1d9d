"""FramePack video models, image-to-video on HunyuanVideo's architecture: the first release (I2V) and F1.

Paper: "Packing Input Frame Context in Next-Frame Prediction Models for Video Generation", arXiv 2504.12626.
Licence: code Apache-2.0; the weights derive from HunyuanVideo's, under Tencent's community licence.
Numbers are checked against lllyasviel/FramePack at commit 97fe5dbe.
"""
