"""The user interface: commands and the full-screen app. It never imports torch."""

__version__ = "0.1.0"
