"""ONNX files without their large weights: these stay in the file, and are copied to another.

Most of what is asked of a model is about its nodes and shapes. A parse copies every weight,
which of 400 MB takes a second and as much memory; serializing takes three times that. Protobuf
cannot leave a field out, so the bytes are walked here, field by field
(https://protobuf.dev/programming-guides/encoding), and the rest is parsed or serialized. What
the walk does not know is parsed whole.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import onnx

from trtbuild.graph.content import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

LARGE_BYTES = 1 << 16
"""Weights from here on stay in the file."""

_WINDOW_BYTES = 1 << 16
_COPY_BYTES = 1 << 20

_MOST_FIELDS = 200_000
"""The walk of more than that, in Python, takes longer than the parse that it saves."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # onnx.proto: ModelProto, GraphProto, TensorProto
_EXTERNAL = (13, 14)  # external_data, data_location
_VARINT, _64_BITS, _BYTES, _32_BITS = 0, 1, 2, 5
_LONGEST_VARINT = 10
_MORE = 0x80
"""The bit of a byte that says that the number goes on."""


class Place(NamedTuple):
    """Where the raw data of a tensor lies in the file."""

    offset: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model, and where the values are that its large initializers lack, by their index."""

    proto: onnx.ModelProto
    places: Mapping[int, Place] = field(default_factory=dict)


class _UnknownError(Exception):
    """The bytes are something that the walk does not know; protobuf tells what."""


class _Field(NamedTuple):
    number: int
    wire: int
    tag: int
    start: int
    stop: int


def read_outline(path: Path) -> Outline:
    """Return the model in ``path``.

    Raises:
        OSError: the file cannot be read.
        google.protobuf.message.DecodeError: it is no ONNX.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            read = functools.partial(os.pread, file.fileno())
            data, places = _without_weights(_Walk(read, size, _MOST_FIELDS))
        except _UnknownError:
            data, places = file.read(), {}
    proto = onnx.ModelProto()
    proto.ParseFromString(data)
    return Outline(proto=proto, places=places)


def fill(outline: Outline, path: Path, but: Collection[int] = ()) -> onnx.ModelProto:
    """Return the model of ``outline`` with its large weights, ``but`` those of some types.

    Raises:
        OSError: the file cannot be read.
    """
    weights = outline.proto.graph.initializer
    with open_regular(path) as file:
        for index, place in outline.places.items():
            if weights[index].data_type not in but:
                data = os.pread(file.fileno(), place.bytes, place.offset)
                weights[index].raw_data = data
    return outline.proto


def write_copy(outline: Outline, source: Path, out: Path) -> Outline:
    """Write the model of ``outline``, whose large weights lie in ``source``, to ``out``.

    Raises:
        OSError: one of the files cannot be read or written.
    """
    with open_regular(source) as file:

        def copy(index: int, to: BinaryIO) -> None:
            file.seek(outline.places[index].offset)
            left = outline.places[index].bytes
            while left and (data := file.read(min(left, _COPY_BYTES))):
                to.write(data)
                left -= len(data)

        sizes = {index: place.bytes for index, place in outline.places.items()}
        return _write(outline.proto, sizes, copy, out)


def write_model(proto: onnx.ModelProto, out: Path) -> None:
    """Write ``proto`` to ``out``, and use up its large weights.

    Raises:
        OSError: the file cannot be written.
    """
    weights = {
        index: data
        for index, tensor in enumerate(proto.graph.initializer)
        if len(data := tensor.raw_data) >= LARGE_BYTES  # each look at it is a copy
    }
    for index in weights:
        proto.graph.initializer[index].ClearField("raw_data")
    sizes = {index: len(data) for index, data in weights.items()}
    _write(proto, sizes, lambda index, to: to.write(weights.pop(index)), out)


def _write(
    proto: onnx.ModelProto,
    sizes: Mapping[int, int],
    copy: Callable[[int, BinaryIO], object],
    out: Path,
) -> Outline:
    data = proto.SerializeToString()
    places = {}
    with out.open("wb") as file:
        for part in _parts(data, sizes) if sizes else (data,):
            if isinstance(part, bytes):
                file.write(part)
            else:
                places[part] = Place(file.tell(), sizes[part])
                copy(part, file)
    return Outline(proto=proto, places=places)


def _parts(data: bytes, sizes: Mapping[int, int]) -> Iterator[bytes | int]:
    """Yield a model's bytes with the index of an initializer in place of its raw data."""
    walk = _Walk(lambda count, at: data[at : at + count], len(data), len(data) + 1)
    graph = next(each for each in walk.fields(0, len(data)) if each.number == _GRAPH)
    fields = walk.fields(graph.start, graph.stop)
    parts: list[bytes | int] = []
    since = graph.start
    for index, each in enumerate(each for each in fields if each.number == _INITIALIZER):
        if index not in sizes:
            continue
        head = _head(_RAW_DATA, sizes[index])
        behind = (f.tag for f in walk.fields(each.start, each.stop) if f.number > _RAW_DATA)
        at = next(behind, each.stop)
        length = each.stop - each.start + len(head) + sizes[index]
        parts.append(data[since : each.tag] + _head(_INITIALIZER, length))
        parts += (data[each.start : at] + head, index, data[at : each.stop])
        since = each.stop
    parts.append(data[since : graph.stop])
    length = sum(sizes[part] if isinstance(part, int) else len(part) for part in parts)
    yield data[: graph.tag] + _head(_GRAPH, length)
    yield from parts
    yield data[graph.stop :]


def _without_weights(walk: _Walk) -> tuple[bytes, dict[int, Place]]:
    """Return the file's bytes without the weights that are large, and where those are."""
    if walk.size_bytes < LARGE_BYTES:
        raise _UnknownError
    fields = list(walk.fields(0, walk.size_bytes))
    graphs = [each for each in fields if each.number == _GRAPH]
    if len(graphs) != 1 or graphs[0].wire != _BYTES:
        raise _UnknownError
    graph = graphs[0]
    places: dict[int, Place] = {}
    kept: list[bytes] = []
    since, index = graph.start, -1
    for each in walk.fields(graph.start, graph.stop):
        if each.number != _INITIALIZER:
            continue
        index += 1
        if each.wire != _BYTES:
            raise _UnknownError
        raw = _large_raw_data(walk, each)
        if raw is not None:
            places[index] = Place(raw.start, raw.stop - raw.start)
            tensor = walk.copy(each.start, raw.tag) + walk.copy(raw.stop, each.stop)
            kept += (walk.copy(since, each.tag), _delimited(_INITIALIZER, tensor))
            since = each.stop
    if not places:
        raise _UnknownError
    body = b"".join((*kept, walk.copy(since, graph.stop)))
    before, behind = walk.copy(0, graph.tag), walk.copy(graph.stop, walk.size_bytes)
    return b"".join((before, _delimited(_GRAPH, body), behind)), places


def _large_raw_data(walk: _Walk, tensor: _Field) -> _Field | None:
    if tensor.stop - tensor.start < LARGE_BYTES:
        return None
    fields = list(walk.fields(tensor.start, tensor.stop))
    raw = [each for each in fields if each.number == _RAW_DATA]
    if len(raw) != 1 or any(each.number in _EXTERNAL for each in fields):
        return None
    is_large = raw[0].wire == _BYTES and raw[0].stop - raw[0].start >= LARGE_BYTES
    return raw[0] if is_large else None


def _delimited(number: int, payload: bytes) -> bytes:
    return _head(number, len(payload)) + payload


def _head(number: int, length: int) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= _MORE:
        found.append(value % _MORE | _MORE)
        value //= _MORE
    found.append(value)
    return bytes(found)


class _Walk:
    """The fields of bytes that ``read`` returns from an offset; they are read in windows."""

    def __init__(
        self, read: Callable[[int, int], bytes], size_bytes: int, most_fields: int
    ) -> None:
        self.size_bytes = size_bytes
        self._read = read
        self._window, self._start = b"", 0
        self._fields_left = most_fields

    def copy(self, start: int, stop: int) -> bytes:
        data = self._read(stop - start, start)
        if len(data) != stop - start:  # over 2 GiB, or it is being cut
            raise _UnknownError
        return data

    def fields(self, at: int, end: int) -> Iterator[_Field]:
        while at < end:
            self._fields_left -= 1
            if not self._fields_left:
                raise _UnknownError
            tag = at
            number, at = self._varint(at)
            wire, start, length = number & 7, at, 0
            if wire == _BYTES:
                length, start = self._varint(at)
            elif wire == _VARINT:
                _, start = self._varint(at)
            elif wire in (_64_BITS, _32_BITS):
                length = 8 if wire == _64_BITS else 4
            else:
                raise _UnknownError
            at = start + length
            if at > end:
                raise _UnknownError
            yield _Field(number >> 3, wire, tag, start, at)

    def _varint(self, at: int) -> tuple[int, int]:
        if not self._start <= at <= self._start + len(self._window) - _LONGEST_VARINT:
            self._window = self._read(_WINDOW_BYTES, at)
            self._start = at
        value, shift = 0, 0
        for byte in self._window[at - self._start : at - self._start + _LONGEST_VARINT]:
            value |= (byte % _MORE) << shift
            shift += 7
            at += 1
            if byte < _MORE:
                return value, at
        raise _UnknownError
