"""Names that the help of `topodet benchmark` lists; no torch is needed to read them."""

from __future__ import annotations

from typing import Any

DTYPES = ("float32", "bfloat16", "float16")

_GPU = {"device": "cuda", "dtype": "bfloat16", "memory_format": "channels_last", "batch": 256, "rounds": 30}
_NETWORK = {"what": "network", "arch": "toponet50"}

PRESETS: dict[str, dict[str, Any]] = {
    # In the memory format in which a network calls its stages on a CPU.
    "stage26": {"what": "stage", "nodes": 26, "in_chs": 256, "out_chs": 512, "memory_format": "channels_last"},
    "toponet50": _NETWORK,
    "toponet50_compiled": {**_NETWORK, "compile": True},
    "toponet50_gpu": {**_NETWORK, **_GPU},
    "toponet50_gpu_compiled": {**_NETWORK, **_GPU, "compile": True},
}
