"""Datasets: what they are, how their clips are read, cached and put into batches. Knows no model family."""
