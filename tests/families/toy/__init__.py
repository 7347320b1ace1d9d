"""A family that nobody needs: the proof that adding a folder is enough (tests/families/test_toy.py).

It has every file that a family owes and nothing else, and where a number is free it differs from the real families'
(latents of 16 x 16 pixels, one latent frame a frame, no tasks), so that whatever the engine takes for granted shows.
"""
