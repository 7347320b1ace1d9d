"""Numbers computed by the reference implementations, and the code that checks ours against them."""
