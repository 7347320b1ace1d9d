"""What `python -m engine demo` draws, prepares and shows. Needs no download: what it needs comes along or is made."""
