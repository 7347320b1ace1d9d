"""What `bench` measures, with which files, and how the figures are worked out; tasks/bench.py runs it."""
