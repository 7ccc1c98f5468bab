"""Call llama.cpp; runs as a script in a separate process, because llama.cpp aborts the process on a
bad file, and with the Python that has llama-cpp-python.

Reads one request as JSON from standard input (`ask`: tokenize, logits or quantize) and writes the
answer to the file that the request names. It imports nothing of this program.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys


def _load(path, **options):
    import llama_cpp  # pyright: ignore

    default_params = llama_cpp.llama_cpp.llama_model_default_params

    def without_repacking():
        # Use the weights as stored. Repacking for AMX crashes on virtual machines that announce AMX
        # and do not have it.
        params = default_params()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = without_repacking
    return llama_cpp.Llama(model_path=path, n_gpu_layers=0, verbose=False, **options)


def tokenize(request):
    """Token ids of `texts`, with beginning and end tokens if `add_special_tokens`.

    Special tokens in a text are always parsed, as Hugging Face does.
    """
    model = _load(request["gguf"], vocab_only=True)
    added = request["add_special_tokens"]
    ids = [model.tokenize(t.encode(), add_bos=added, special=True) for t in request["texts"]]
    with open(request["answer"], "w") as file:
        json.dump(ids, file)


def logits(request):
    """Logits after each token of each of `sequences`, stacked, as float32 (.npy)."""
    import numpy as np

    sequences = request["sequences"]
    longest = max(map(len, sequences))
    # f32 keys and values: measure the file, not llama.cpp's f16 cache.
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
    """Write `gguf` as a file of type `file_type`."""
    import llama_cpp  # pyright: ignore

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = request["file_type"]
    options.nthread = request["threads"]
    code = llama_cpp.llama_model_quantize(
        request["gguf"].encode(), request["answer"].encode(), ctypes.byref(options)
    )
    if code:
        sys.exit(f"llama.cpp's quantizer returned {code}")


def main():
    """Answer the request; the exit code is 0 when the answer is written."""
    request = json.load(sys.stdin)
    # llama.cpp logs to standard error; the caller reports its last line on a failure.
    os.dup2(2, 1)
    {"tokenize": tokenize, "logits": logits, "quantize": quantize}[request["ask"]](request)


if __name__ == "__main__":
    main()
