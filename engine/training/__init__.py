"""Training: one rectified-flow step, one loop, and what they are set up with."""
