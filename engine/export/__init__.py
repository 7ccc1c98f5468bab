"""Export a trained model: write it as GGUF, compare the file with the model, and upload both.

`job` runs an export from start to end. `weights` reads the model folder, `tensors` maps and encodes
its tensors, `tokenizer` maps its tokenizer, `gguf` writes the file, and `parity` compares the file
with the model.
"""
