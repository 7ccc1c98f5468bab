"""Owns the questions put to llama.cpp: this file runs as a script of its own, under whatever Python
has llama-cpp-python, because a bad file makes llama.cpp end its process.

One request as JSON on standard input (`ask`: tokenize, logits or quantize); the answer is written
to the file that it names. It imports nothing of this program.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys


def _load(path, **options):
    import llama_cpp  # pyright: ignore

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def plain_buffers():
        # Weights stay as they lie in the file: not repacked, and not for AMX tiles, which some
        # virtual machines announce and then end the process for.
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain_buffers
    return llama_cpp.Llama(model_path=path, n_gpu_layers=0, verbose=False, **options)


def tokenize(request):
    """Token ids of `texts`, with `special` the marks of beginning and end; special tokens in the
    text are always read as such, as Hugging Face does."""
    model = _load(request["gguf"], vocab_only=True)
    flags = request["special"], True
    ids = [model.tokenize(t.encode(), add_bos=flags[0], special=flags[1]) for t in request["texts"]]
    with open(request["answer"], "w") as file:
        json.dump(ids, file)


def logits(request):
    """Logits after each token of each of `sequences`, stacked, as float32 (.npy)."""
    import numpy as np

    sequences = request["sequences"]
    longest = max(map(len, sequences))
    # f32 keys and values: it is the file that is measured, not llama.cpp's f16 cache.
    model = _load(
        request["gguf"],
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=longest,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        logits_all=True,
        type_k=0,
        type_v=0,
    )
    rows = []
    for ids in sequences:
        model.reset()
        model.eval(ids)
        rows.append(model.scores[: len(ids)].copy())
    np.save(request["answer"], np.concatenate(rows).astype(np.float32))


def quantize(request):
    """A file of another type, `file_type`, out of `gguf`."""
    import llama_cpp  # pyright: ignore

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = request["file_type"]
    options.nthread = request["threads"]
    code = llama_cpp.llama_model_quantize(
        request["gguf"].encode(), request["answer"].encode(), ctypes.byref(options)
    )
    if code:
        sys.exit(f"llama.cpp's quantiser answered {code}")


def main():
    """Answer the request; the exit code is 0 when the answer is written."""
    request = json.load(sys.stdin)
    # llama.cpp speaks on standard error; a caller wants its last line when something fails.
    os.dup2(2, 1)
    {"tokenize": tokenize, "logits": logits, "quantize": quantize}[request["ask"]](request)


if __name__ == "__main__":
    main()
