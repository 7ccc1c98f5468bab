"""Structural checks: is the model intact, does it load, does its tokenizer work, do its GGUF files
match it? A failed structural check fails the validation.

To add one:

1. Write a file here with a function that takes a `CheckContext` and returns `structural_row(...)`
   (or yields several).
2. Add one line for it to `table.STRUCTURAL_CHECKS`: key, title, function, and what it needs.

The function may raise: the error becomes a failed row. A check that needs the model is skipped
when the model cannot be loaded.
"""
