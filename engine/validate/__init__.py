"""Validate a model: is it structurally intact, and how good are its answers?

`job` runs a validation from start to end. `checks` holds the structural checks, which decide the
exit code; `quality` holds the quality metrics, which only inform. `report` turns all results into
validation.json. Both packages explain in their docstrings how to add a check.
"""
