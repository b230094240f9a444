"""The recipe: what a user asks for, read strictly from ``engines/NAME.toml`` or from a call.

Everything that can be wrong with a recipe is said here, before any work, with file, table and
key. Behind :func:`load_recipe` nobody checks again.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from trtbuild.engine import Precision, Rest, Setting, ShapeRange, Value
from trtbuild.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Method = Literal["auto", "minmax", "percentile", "entropy", "mse"]

Technique = Literal["equalize", "smooth", "rounding", "bias"]

RestWord = Literal["auto", "fp32", "fp16", "bf16"]

BlockSize = Literal[32, 64, 128]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RESTS = ("auto", *get_args(Rest))

_WORDS = {
    "method": get_args(Method),
    "precision": PRECISIONS,
    "rest": RESTS,
    "techniques": ("auto", *get_args(Technique), "[] for none"),
    "sparsity": ("2:4",),
}

UNSUPPORTED_PRECISIONS = ("tf32", "best")
"""Words of the design that this version refuses by name instead of as a typing mistake."""


class Source(Value, frozen=True, kw_only=True):
    """The ``[source]`` table: exactly one framework, and where its model is.

    ``torch`` is ``file.py:factory`` or ``package.module:factory``; ``pt2`` and ``onnx`` are
    files.
    """

    onnx: str | None = None
    torch: str | None = None
    pt2: str | None = None

    def __post_init__(self) -> None:
        """Refuse none, or more than one."""
        given = [name for name in ("onnx", "torch", "pt2") if getattr(self, name) is not None]
        if len(given) != 1:
            named = ", ".join(given) or "nothing"
            message = f"expected exactly one of onnx, torch, pt2, got {named}"
            raise ValueError(message)

    @property
    def framework(self) -> str:
        """The name of the field that is set."""
        return "onnx" if self.onnx else "torch" if self.torch else "pt2"

    @property
    def location(self) -> str:
        """The value of the field that is set."""
        return self.onnx or self.torch or self.pt2 or ""


class Quantization(Value, frozen=True, kw_only=True):
    """The ``[quantization]`` table.

    ``provider`` is a provider's file, an ``.npz`` file or a folder of ``.npy`` files;
    ``evaluation`` names other data for the evaluation. ``keep_float`` are ONNX node names
    (or shell patterns) that stay in floating point. ``trt_cache`` is a calibration cache of
    TensorRT 4 to 10: its scales are taken as they are, the data is for tensors that it lacks.
    ``sparsity`` makes two of four weights zero; ``keep_dense`` are nodes (likewise) whose
    weights stay. ``policy`` is ``auto`` (with a gate on the metric, find what must stay in
    floating point too), ``all`` (nothing else does) or a policy file.
    ``techniques`` are applied as listed; ``auto`` tries those that are quick where ``method``
    is ``auto`` too, and keeps what improves. With a cache there are none.
    ``rest`` is what computes around quantized layers, ``auto`` the backend's choice.
    ``block_size`` is the largest block of INT4 weights.
    """

    precision: Precision = "fp32"
    provider: str | None = None
    evaluation: str | None = None
    method: Method = "auto"
    techniques: Literal["auto"] | tuple[Technique, ...] = "auto"
    keep_float: tuple[str, ...] = ()
    trt_cache: str | None = None
    sparsity: Literal["2:4"] | None = None
    keep_dense: tuple[str, ...] = ()
    policy: Annotated[str, msgspec.Meta(min_length=1)] = "auto"
    rest: RestWord = "auto"
    block_size: BlockSize = 128

    def __post_init__(self) -> None:
        """Refuse INT8 and FP8 without data, a cache without INT8, a method that FP8 has not."""
        cached = self.precision == "int8" and self.trt_cache is not None
        if self.precision in {"int8", "fp8"} and self.provider is None and not cached:
            message = (
                f"precision {self.precision} needs calibration data: name a provider, an .npz "
                f"file or a folder (random data is never used silently)"
            )
            raise ValueError(message)
        if self.precision == "fp8" and self.method == "entropy":
            message = (
                "method entropy merges values into 128 equal steps, which fp8 has not: use "
                "auto, minmax, percentile or mse"
            )
            raise ValueError(message)
        if self.precision != "int8" and self.trt_cache is not None:
            message = (
                f"trt_cache holds scales for precision int8, the precision is "
                f"{self.precision}: ask for --precision int8, or leave out the cache"
            )
            raise ValueError(message)
        self._expect_words_to_fit()
        self._expect_sparsity_to_fit()

    def without_unused(self, precision: Precision) -> Quantization:
        """Return the table, its precision too, without what ``precision`` cannot use."""
        techniques = self.techniques if precision == "int8" else "auto"
        rest = "auto" if precision in get_args(Rest) else self.rest
        return msgspec.structs.replace(self, techniques=techniques, rest=rest)

    def _expect_words_to_fit(self) -> None:
        if self.precision != "int8" and self.techniques not in ("auto", ()):
            message = (
                f"techniques are for precision int8, the precision is {self.precision}: leave "
                f"out {', '.join(self.techniques)}"
            )
            raise ValueError(message)
        if self.precision in get_args(Rest) and self.rest != "auto":
            message = (
                f"rest is what computes around quantized layers, and precision "
                f"{self.precision} quantizes none: leave out rest = {self.rest!r}"
            )
            raise ValueError(message)

    def _expect_sparsity_to_fit(self) -> None:
        if self.sparsity is not None and self.trt_cache is not None:
            message = (
                "sparsity changes the activations, so the scales of trt_cache do not hold: "
                "give calibration data instead of the cache"
            )
            raise ValueError(message)
        if self.sparsity is not None and self.precision in {"int4", "nvfp4", "mxfp4"}:
            message = (
                f"sparsity is for fp32, fp16, bf16, int8 and fp8: packed {self.precision} "
                f"weights have no sparse kernels. Leave one of them out"
            )
            raise ValueError(message)
        if self.keep_dense and self.sparsity is None:
            message = "keep_dense is for a model that is made sparse: set sparsity = '2:4' too"
            raise ValueError(message)


def profile_table(name: str) -> str:
    """Return the header of an input's profile in a recipe, the name quoted where TOML asks."""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    return f"[build.profiles.{name if bare else json.dumps(name, ensure_ascii=False)}]"


class Profile(Value, frozen=True, kw_only=True):
    """The shapes of one input, outermost axis first; ``opt`` is what tactics are timed for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Build(Value, frozen=True, kw_only=True):
    """The ``[build]`` table.

    ``targets`` are ``backend`` or ``backend:arch``. ``options`` are builder settings by name;
    a backend that does not honor one is an error. Limits on the child process that builds do
    not count as settings: they never change the bytes.
    """

    targets: tuple[str, ...] = ()
    profiles: dict[str, Profile] = msgspec.field(default_factory=dict)
    options: dict[str, Setting] = msgspec.field(default_factory=dict)

    def shape_ranges(self) -> tuple[ShapeRange, ...]:
        """Return the one optimization profile of this recipe, inputs in the recipe's order."""
        return tuple(
            ShapeRange(input=name, min=profile.min, opt=profile.opt, max=profile.max)
            for name, profile in self.profiles.items()
        )

    def __post_init__(self) -> None:
        """Refuse profiles that are out of order."""
        self.shape_ranges()


class Limits(Value, frozen=True, kw_only=True):
    """The ``[limits]`` table: bounds on what a run may use, never part of a key.

    ``build_seconds`` and ``build_memory_mib`` are for the child process of one build,
    ``calib_memory_mib`` for this process while it calibrates.
    """

    build_seconds: Annotated[int, msgspec.Meta(ge=1)] = 3600
    build_memory_mib: Annotated[int, msgspec.Meta(ge=256)] | None = None
    calib_memory_mib: Annotated[int, msgspec.Meta(ge=64)] | None = None


_FINITE = sys.float_info.max
"""The largest number: JSON has no infinity, and an infinite gate is none."""


class Gates(Value, frozen=True, kw_only=True):
    """The ``[gates]`` table.

    ``max_drop`` bounds the drop of the provider's metric against the framework (absolute, in
    the metric's own unit). ``min_speedup`` is over the same engine without quantization, in
    the same run.
    """

    max_drop: Annotated[float, msgspec.Meta(ge=0, le=_FINITE)] | None = None
    min_speedup: Annotated[float, msgspec.Meta(gt=0, le=_FINITE)] | None = None


class Recipe(Value, frozen=True, kw_only=True):
    """One engine, for one or more targets. ``folder`` is what relative paths start from."""

    name: str
    folder: Path
    source: Source
    quantization: Quantization = Quantization()
    build: Build = Build()
    gates: Gates = Gates()
    limits: Limits = Limits()


class _Named(msgspec.Struct):
    """Of a recipe of any version: the name alone."""

    name: str


class _File(Value, frozen=True, kw_only=True):
    """The tables of a recipe file; its name and folder come from its path."""

    source: Source
    quantization: Quantization = Quantization()
    build: Build = Build()
    gates: Gates = Gates()
    limits: Limits = Limits()


def load_recipe(path: Path) -> Recipe:
    """Return the recipe in a TOML file.

    Relative paths in a recipe start from the folder above ``engines/`` when the file lies in a
    folder of that name, and from the file's own folder otherwise.

    Raises:
        RecipeError: the file is missing, is no TOML, or a table or key is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = (
            f"{path}: cannot read the recipe: {error.strerror}. Give the path of a .toml file"
        )
        raise RecipeError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not a text file ({error.reason}); a recipe is TOML in UTF-8"
        raise RecipeError(message) from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = f"{path}: not valid TOML: {error}"
        raise RecipeError(message) from error
    _refuse_unsupported(path, tables)
    try:
        parsed = msgspec.convert(tables, _File, strict=True)
    except msgspec.ValidationError as error:
        message = f"{path}: {_explain(str(error))}"
        raise RecipeError(message) from error
    folder = path.resolve().parent
    if folder.name == "engines":
        folder = folder.parent
    return Recipe(
        name=path.stem,
        folder=folder,
        source=parsed.source,
        quantization=parsed.quantization,
        build=parsed.build,
        gates=parsed.gates,
        limits=parsed.limits,
    )


def _refuse_unsupported(path: Path, tables: dict[str, object]) -> None:
    quantization = tables.get("quantization")
    if (
        isinstance(quantization, dict)
        and quantization.get("precision") in UNSUPPORTED_PRECISIONS
    ):
        message = (
            f"{path}: [quantization] precision = {quantization['precision']!r} is not built by "
            f"this version: expected one of {', '.join(PRECISIONS)}"
        )
        raise RecipeError(message)


def _explain(message: str) -> str:
    """Turn ``Expected ... - at `$.gates.max_drop` `` into ``[gates] max_drop: ...``."""
    text, _, place = message.partition(" - at `$")
    keys = [key for key in place.rstrip("`").split(".") if key]
    text += _allowed(text, keys)
    if not keys:
        return text
    table, *rest = keys
    return f"[{table}] {'.'.join(rest)}: {text}" if rest else f"[{table}]: {text}"


def _allowed(text: str, keys: list[str]) -> str:
    """Return what could stand in the place of an unknown key or word, nearest first."""
    table = {field.name: field.type for field in msgspec.structs.fields(_File)}.get(
        keys[0] if keys else "", _File
    )
    if "unknown field" in text and len(keys) <= 1:
        words = [field.name for field in msgspec.structs.fields(table)]
    elif "enum value" in text and keys[-1].partition("[")[0] in _WORDS:
        words = list(_WORDS[keys[-1].partition("[")[0]])
    else:
        return ""
    wrong = text.rpartition(" ")[2].strip("`'")
    near = difflib.get_close_matches(wrong, words, n=1)
    rest = [word for word in words if word not in near]
    return f"; expected {' or '.join([*near, ', '.join(rest)])}"


def json_schema() -> dict[str, object]:
    """Return the JSON schema of a recipe file, for editors."""
    return msgspec.json.schema(_File)


def recipe_json(recipe: Recipe) -> str:
    """Return a recipe with its folder as canonical JSON; :func:`recipe_from_json` reads it."""
    return msgspec.json.encode(
        msgspec.to_builtins(recipe, enc_hook=str), order="sorted"
    ).decode()


def recipe_from_json(text: str) -> Recipe:
    """Return the recipe in the JSON that :func:`recipe_json` wrote.

    Raises:
        RecipeError: it is of another version.
    """
    try:
        return msgspec.json.decode(text, type=Recipe, dec_hook=_to_path)
    except msgspec.MsgspecError as error:
        raise RecipeError(
            f"a stored recipe cannot be read: {error}. Give the recipe"
        ) from error


def recipe_name(text: str) -> str:
    """Return the name in the JSON of a recipe of any version; empty where there is none."""
    try:
        return msgspec.json.decode(text, type=_Named).name
    except msgspec.MsgspecError:
        return ""


def _to_path(kind: type, value: object) -> object:
    return kind(value)
