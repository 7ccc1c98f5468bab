"""What the user sees: commands and screens. It computes nothing and never imports torch."""

__version__ = "0.1.0"
