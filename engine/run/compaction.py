"""Store events of the history as compressed JSON with a shared dictionary: a third of its size."""

from __future__ import annotations

import zlib

_VERSION = b"\x01"
# Text that every event repeats. It belongs to the format: for another one add a version.
_DICTIONARY = (
    b'{"type":"HardwareRead","seq":,"time":17,"step":,"cpu_percent":,"ram_used":,"ram_total":,'
    b'"worker_rss":,"disk_free":,"disk_read_per_sec":,"disk_write_per_sec":,"gpus":[]}'
    b'{"type":"Progress","seq":,"time":17,"step":,"task":"score:","label":"","done":,"total":,'
    b'"unit":"tokens","rate":,"eta":,"finished":false}'
    b'{"type":"StepDone","seq":,"time":17,"step":,"phase":,"expert":null,"loss":,"kl":,"ce":,'
    b'"lr":0.00,"grad_norm":,"tokens":,"tokens_seen":,"tokens_per_sec":,"step_seconds":0.,'
    b'"mean_weight":0.9,"phase_progress":0.,"run_progress":0.,"phase_eta":null,"run_eta":,'
    b'"training_seconds":,"skipped":false}'
)


def pack(line: bytes) -> bytes | str:
    """An encoded event as it is stored: compressed where that is shorter, else as text."""
    compressor = zlib.compressobj(6, wbits=-15, memLevel=9, zdict=_DICTIONARY)
    packed = _VERSION + compressor.compress(line) + compressor.flush()
    return packed if len(packed) < len(line) else line.decode()


def unpack(body: bytes | str) -> bytes | str:
    """The encoded event of a stored one; raises ValueError where it is damaged."""
    if not isinstance(body, bytes) or body[:1] != _VERSION:
        return body
    decompressor = zlib.decompressobj(wbits=-15, zdict=_DICTIONARY)
    try:
        line = decompressor.decompress(body[1:])
    except zlib.error as error:
        raise ValueError(f"a stored event is damaged: {error}") from error
    if not decompressor.eof:
        raise ValueError("a stored event is cut short")
    return line
