"""Compare a GGUF file with the model it was made from, one file for each comparison.

`checks.parity_checks` runs them in order: `structure` (metadata, names, shapes), `tensors` (every
weight), `tokens` (token ids of difficult strings) and `logits` (llama.cpp against transformers).
Each comparison is a CheckDone event, so that export and validation report the same rows.
"""
