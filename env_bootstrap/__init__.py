"""Makes, checks, repairs and starts the engine's own Python environment.

Standard library only, and nothing here imports the engine: `python -m env_bootstrap create` works in a fresh checkout
with any Python 3.10 or newer. The calling Python is only ever read. See `cli.py` for the commands, `home.py` for where
things live, `maker.py` for the order of the steps.
"""
