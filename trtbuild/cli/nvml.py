"""Print the NVIDIA driver and the GPUs of this machine as JSON; run in a process of its own.

``python -m trtbuild.cli.nvml`` needs the package nvidia-ml-py and a driver; without a driver it
prints nothing and fails.
"""

from __future__ import annotations

import json

import pynvml


def describe() -> dict[str, object]:
    """Return the driver's version and name, architecture and memory of each GPU."""
    pynvml.nvmlInit()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "gpus": [_gpu(handle) for handle in handles],
        }
    finally:
        pynvml.nvmlShutdown()


def _gpu(handle: object) -> dict[str, str | int]:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {
        "name": pynvml.nvmlDeviceGetName(handle),
        "arch": f"sm_{major}{minor}",
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    }


if __name__ == "__main__":
    print(json.dumps(describe()))  # noqa: T201  the answer to the parent process
