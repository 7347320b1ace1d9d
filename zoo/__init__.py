"""A developer's tool: draws the clips that the pocket models are trained on, and judges what they generate.

`scenes` is the door to the drawn clips and their captions, `judge` says whether a clip shows what its caption says.
Nothing in the engine or the nodes imports this folder.
"""
