"""Structural checks: is the model intact, does it load, does its tokenizer work, do its GGUF files
match it? A failed structural check fails the validation.

To add one:

1. Write a file here with a function that takes a `CheckContext` and returns `structural_row(...)`
   (or yields several), and a `CHECK` that gives its key, its title and what it needs.
2. Add `<file>.CHECK` to `table.STRUCTURAL_CHECKS`.

The function may raise: the error becomes a failed row. A check that needs the model is skipped
when the model cannot be loaded.
"""
