"""Quality checks: how well does the model predict held-out text, answer questions and call tools?
They never fail a validation.

To add one:

1. Write a file here with a function that takes a `CheckContext` and returns `quality_row(...)` (or
   yields several), and a `CHECK` that gives its key and its title. Generate answers with
   `context.generator`; add them to `context.generations` to store them in the report.
2. Add `<file>.CHECK` to `table.QUALITY_CHECKS`.

The function may raise: the error becomes a skipped row with the reason. A row with a bound counts
in the verdict; one without a bound is information only. Where a later report should say whether the
number got better or worse, add its direction to `report.COMPARED_METRICS`.
"""
