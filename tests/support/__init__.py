"""Helpers that several test packages share: tiny models, small runs, and the real program."""
