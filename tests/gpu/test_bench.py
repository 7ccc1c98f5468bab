"""The GPU benchmark runs on the CPU with tiny sizes, and reports every figure."""

from __future__ import annotations

import json
import math

from benchmarks import gpu


def test_the_gpu_benchmark_runs_with_tiny_sizes_on_the_cpu():
    result = json.loads(json.dumps(gpu.run(tiny=True, shapes=["phi-2", "Qwen2.5-1.5B"])))
    assert result["gemm_tflops"] > 0 and result["skipped"] == []
    assert result["attention"]["math causal"]["ms"] > 0
    assert 0 < result["checkpoint"]["share"] < 1
    assert set(result["experts"]) == {"phi-2", "Qwen2.5-1.5B"}
    for figures in result["experts"].values():
        for loop in ("eager", "plain_loop"):
            assert figures[loop]["tokens_per_second"] > 0 and 0 < figures[loop]["mfu"] < 1
        assert set(figures["shares"]) == {
            "data",
            "teacher",
            "projection",
            "loss",
            "student forward",
        }
        assert math.isfinite(figures["speedup_over_plain"])


def test_the_real_shapes_are_those_of_the_experts():
    sizes = {name: gpu.expert_config(name, tiny=False).hidden_size for name in gpu.SHAPES}
    assert sizes == {
        "Qwen2.5-1.5B": 1536,
        "Llama-3.2-1B": 2048,
        "phi-2": 2560,
        "TinyLlama-1.1B": 2048,
    }
