"""What `python -m engine demo` draws, prepares and shows. Needs no download: clips and models are made on the spot."""
