"""Keys and layers: whatever can change the bytes of an engine changes its key."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from trtbuild.canonical import digest, encode, sha256_file
from trtbuild.engine import (
    EngineKey,
    Fingerprint,
    Layer,
    Layers,
    ShapeRange,
    Target,
    TensorSpec,
    Value,
)

IMAGES = ShapeRange(input="images", min=(1, 3), opt=(8, 3), max=(8, 3))
MASK = ShapeRange(input="mask", min=(1,), opt=(8,), max=(8,))
KEY = EngineKey(
    network_sha256="0" * 64,
    profiles=((IMAGES, MASK),),
    settings=(("optimization_level", 3), ("workspace_mib", 4096)),
    target=Target(backend="tensorrt-rtx", arch="sm_89", os="linux-x86_64"),
    fingerprint=Fingerprint(backend="tensorrt-rtx", version="1.7.1", build="a" * 64),
)
OTHERS: dict[str, dict[str, object]] = {
    "network": {"network_sha256": "1" * 64},
    "order of inputs": {"profiles": ((MASK, IMAGES),)},
    "two profiles": {"profiles": ((IMAGES, MASK), (IMAGES, MASK))},
    "value of a setting": {"settings": (("optimization_level", 4), ("workspace_mib", 4096))},
    "type of a setting": {"settings": (("optimization_level", "3"), ("workspace_mib", 4096))},
    "architecture": {
        "target": Target(backend="tensorrt-rtx", arch="sm_120", os="linux-x86_64")
    },
    "build of the library": {
        "fingerprint": Fingerprint(backend="tensorrt-rtx", version="1.7.1", build="b" * 64)
    },
    "meaning of the key": {"key_schema": 2},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_input_is_another_key(name: str) -> None:
    other = msgspec.structs.replace(KEY, **OTHERS[name])
    assert other.digest != KEY.digest
    assert len(other.digest) == 64


def test_every_field_of_the_key_is_tried() -> None:
    tried = {field for change in OTHERS.values() for field in change}
    assert tried == set(EngineKey.__struct_fields__)


def test_a_key_is_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "import sys, msgspec; from trtbuild.engine import EngineKey;"
        "print(msgspec.json.decode(sys.stdin.buffer.read(), type=EngineKey).digest)"
    )
    for seed in ("1", "2"):
        child = subprocess.run(
            [sys.executable, "-c", code],
            input=encode(KEY),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert child.stdout.decode().strip() == KEY.digest


def test_a_tag_keeps_equal_values_apart() -> None:
    assert digest("a/v1", {"x": 1}) != digest("b/v1", {"x": 1})
    assert digest("a/v1", {"x": 1, "y": 2}) == digest("a/v1", {"y": 2, "x": 1})


def test_the_digest_of_a_file_is_that_of_its_bytes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("files") / "two-pieces"
    path.write_bytes(b"a" * ((1 << 20) + 1))
    expected = subprocess.run(
        ["sha256sum", path], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert sha256_file(path) == expected


def test_values_do_not_change_and_take_no_unknown_field() -> None:
    with pytest.raises(AttributeError):
        KEY.target.arch = "sm_75"  # type: ignore[misc]  # that is what is tested
    with pytest.raises(msgspec.ValidationError, match="unknown"):
        msgspec.convert({"backend": "b", "arch": "a", "os": "o", "gpu": 1}, Target)
    assert issubclass(TensorSpec, Value)


def test_layers_count_what_computes_by_its_precision() -> None:
    layers = Layers(
        layers=(
            layer("conv1", "int8", compute=True, nodes=("conv1", "relu1")),
            layer("conv2", "int8", compute=True, nodes=("conv2",)),
            layer("fc", "fp32", compute=True, nodes=("fc", "add", "relu2")),
            layer("transpose", "fp16", compute=False, nodes=("t",)),
        )
    )
    assert layers.precision_achieved == {"fp32": 1, "int8": 2}


def layer(name: str, precision: str, *, compute: bool, nodes: tuple[str, ...]) -> Layer:
    return Layer(name=name, kind="k", precision=precision, compute=compute, nodes=nodes)
