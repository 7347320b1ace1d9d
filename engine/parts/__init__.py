"""Modules and functions that more than one family is built from: weight files, rotary tables, embeddings."""
