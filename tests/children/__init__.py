"""Engines that misbehave, for whoever has to live with one."""
