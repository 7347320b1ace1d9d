"""Tests of the environment maker. Nothing here downloads or installs: `fake_python.py` plays the Python and its pip."""
