"""Panels for a live notebook, each one call, each with a static twin that stays when the kernel is gone."""
