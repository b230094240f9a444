"""The one logger of TensorRT in a process: it ignores a second one, with a warning."""

from __future__ import annotations

from typing import Any

import tensorrt_rtx as trt

from trtbuild.backends.trt_log import Messages

MESSAGES = Messages()

DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.BF16: "bfloat16",
    trt.DataType.INT32: "int32",
    trt.DataType.INT64: "int64",
    trt.DataType.INT8: "int8",
    trt.DataType.UINT8: "uint8",
    trt.DataType.BOOL: "bool",
}
"""TensorRT's element types by NumPy name."""


class _Logger(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
    """Hands every message of TensorRT to :class:`Messages`."""

    def __init__(self, messages: Messages) -> None:
        trt.ILogger.__init__(self)
        self._messages = messages

    def log(self, severity: Any, message: str) -> None:  # noqa: ANN401  untyped bindings
        self._messages.take(severity.name, message)


LOGGER = _Logger(MESSAGES)
