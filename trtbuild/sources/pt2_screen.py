"""Refuse what in a ``.pt2`` archive could run code while torch loads it.

``torch.export.load`` says of itself that it uses pickle, and warns of untrusted files. In
torch 2.13 code can come in by these ways; each is looked at here before the load:

- pickled weights, constants and opaque objects, compiled libraries
  (``torch/export/pt2_archive/_package.py``: ``_load_state_dict``, ``_load_constants``,
  ``_load_aoti``);
- example inputs, unpickled without limits when the limited unpickler refuses them
  (``torch/_export/serde/serialize.py``: ``deserialize_torch_artifact``);
- size expressions, which sympy evaluates as Python (``_parse_sym_expr``);
- operator names, looked up below ``torch`` at any depth (``deserialize_operator``), and names
  that are pasted into generated Python.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from trtbuild.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KNOWN_FILES = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/.*"
    r"|archive_format|archive_version|byteorder|\.data/[\w.]+"
)
"""What :func:`torch.export.save` writes for a model without pickled or compiled parts."""

_CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)

_NAMESPACES = (
    "aten|prim|prims|higher_order|quantized|quantized_decomposed|torchvision|_quantized"
)

_OPERATORS = (
    "add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|invert"
    "|lshift|rshift|getitem"
)

_OPERATOR = re.compile(
    rf"torch\.ops\.({_NAMESPACES})\.\w+(\.\w+)?|_operator\.({_OPERATORS})|math\.\w+"
    r"|torch\.(_)?sym_\w+"
)

_NAME = re.compile(r"[\w.]*")

_TOKEN = re.compile(r"\s+|[(),=+\-*/<>&|~%]|\d+(\.\d+)?(e[+-]?\d+)?|'[a-z]+\d+'|[A-Za-z_]\w*")

# fmt: off
_WORDS = frozenset(
    {
        "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max",
        "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "FloorDiv",
        "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
        "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
        "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
        "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "Piecewise",
        "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "Equality",
        "Unequality", "Relational", "true", "false", "True", "False", "None", "integer",
        "positive", "nonnegative", "negative", "nonzero", "real", "finite", "evaluate",
        "precision", "int_oo", "oo",
    }
)
# fmt: on

_SYMBOL = re.compile(r"[a-z]{1,3}\d+")


def screen(path: Path) -> None:
    """Return only if torch can load the archive without running code that the archive brings.

    Raises:
        SourceError: it is no archive of torch.export, or it needs code or pickles.
    """
    try:
        # The reader that the load itself uses, so that both see the same bytes.
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
    except (RuntimeError, AssertionError) as error:
        raise SourceError(
            f"{path}: no archive of torch.export ({_first_line(error)}). Expected a .pt2 file "
            "from torch.export.save of torch 2.8 or later"
        ) from error
    for name in names:
        if not _KNOWN_FILES.fullmatch(name):
            raise _refused(path, f"has a member {name!r}")
    for config in _CONFIGS:
        for where, key, value in _fields(_json(reader, config, path)):
            if key == "use_pickle" and value is not False:
                raise _refused(path, f"keeps {where} as a pickle")
    _check_example(reader.read_bytes("data/sample_inputs/model.pt"), path)
    for where, key, value in _fields(_json(reader, "models/model.json", path)):
        _check_field(where, key, value, path)


def _check_example(pickled: bytes, path: Path) -> None:
    """Refuse example inputs that torch would unpickle without limits."""
    if not pickled:
        return
    try:
        torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception as error:  # whatever it raises makes torch fall back to the full pickle
        raise _refused(path, "has example inputs that are no plain tensors") from error


def _check_field(where: str, key: str, value: object, path: Path) -> None:
    if key == "expr_str" and not _is_expression(value):
        raise _refused(path, f"has the size expression {value!r}")
    is_operator = key == "as_operator" or (key == "target" and where.endswith("nodes"))
    if is_operator and not (isinstance(value, str) and _OPERATOR.fullmatch(value)):
        raise _refused(path, f"calls {value!r}")
    if key == "forward_arg_names" and isinstance(value, list):
        names = [name for name in value if not str(name).isidentifier()]
    else:
        names = [key] if not _NAME.fullmatch(key) else []
        if key in {"name", "graph_name"} and not _NAME.fullmatch(str(value)):
            names.append(str(value))
    if names:
        raise _refused(path, f"has the name {names[0]!r}")
    if key in {"in_spec", "out_spec"} and "default_factory_module" in str(value):
        raise _refused(path, f"imports a module for its {key}")


def _is_expression(value: object) -> bool:
    """Tell whether sympy, which evaluates it, finds nothing in it but arithmetic."""
    if not isinstance(value, str):
        return False
    end = 0
    while end < len(value):
        token = _TOKEN.match(value, end)
        if token is None:
            return False
        word = token[0]
        is_word = word[0].isalpha() or word[0] == "_"
        if is_word and word not in _WORDS and not _SYMBOL.fullmatch(word):
            return False
        end = token.end()
    return True


def _fields(value: object, where: str = "") -> Iterator[tuple[str, str, object]]:
    """Yield the place, key and value of every field of a JSON document."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield where, str(key), item
            yield from _fields(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _fields(item, where)


def _json(reader: PT2ArchiveReader, name: str, path: Path) -> object:
    try:
        return json.loads(reader.read_bytes(name))
    except (RuntimeError, ValueError) as error:
        raise SourceError(
            f"{path}: {name} in it cannot be read ({_first_line(error)}); save the model again"
        ) from error


def _refused(path: Path, what: str) -> SourceError:
    return SourceError(
        f"{path}: {what}, which could run code when it is loaded. Give the model's factory "
        "instead (torch = 'file.py:factory'), or save a plain program of tensors again"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
