"""What people run on a GPU else, as sessions: torch.compile, ONNX Runtime CUDA, Polygraphy."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtbuild.graph.model import load_model, save_model
from trtbuild.pipeline.cast import cast
from trtbuild.pipeline.context import working
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import ExitStack
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.engine import TensorSpec
    from trtbuild.recipe import Recipe
    from trtbuild.store import Store

    Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Rival:
    """A function of host arrays as a session."""

    function: Callable[[Arrays], dict[str, Any]]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, inputs: Arrays) -> dict[str, Any]:
        return self.function(inputs)


def versions(packages: Iterable[str]) -> str:
    names = importlib.metadata.packages_distributions()
    found = {d for package in packages for d in names.get(package, ())}
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(found))


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The rivals of one engine; ``missing`` says why one is not there."""

    recipe: Recipe
    store: Store
    precision: str
    missing: list[str] = field(default_factory=list)

    def graph(self, folder: Path) -> Path:
        """Write the model for ONNX Runtime: as exported, or trtbuild's own FP16 network.

        FP16 for every precision but FP32, as the rivals have no INT8; inputs stay as they are.
        """
        with working(self.recipe, self.store, lambda _: None) as context:
            data = open_data(context)
            graph = export_source(context, data).graph
            if self.precision != "fp32":
                graph = cast(context, optimized(context, graph), data, "fp16").graph
            return save_model(load_model(graph.path), folder / "rival.onnx").path

    def open(
        self, engine: bytes, backend: str, folder: Path, stack: ExitStack
    ) -> dict[str, Rival]:
        """Return those that work here, by name."""
        graph = self.graph(folder)
        half = self.precision != "fp32"
        kind = "fp16" if half else "fp32"
        makers: dict[str, Callable[[], Rival]] = {
            f"torch.compile {kind}": lambda: self._torch(half=half),
            f"ONNX Runtime CUDA {kind}": lambda: _ort(graph),
        }
        if backend == "tensorrt":
            makers["Polygraphy, same engine"] = lambda: _polygraphy(engine, stack)
        found = {}
        for name, make in makers.items():
            try:
                found[name] = make()
            except Exception as error:  # noqa: BLE001, PERF203  whatever fails, the others run
                self.missing.append(f"{name}: {type(error).__name__}: {error}")
        return found

    def _torch(self, *, half: bool) -> Rival:
        import torch  # noqa: PLC0415  a rival that may be missing

        from trtbuild.sources.user_code import load_file  # noqa: PLC0415  as above

        file, _, factory = (self.recipe.source.torch or "").rpartition(":")
        model = getattr(load_file(self.recipe.folder / file), factory)().cuda().eval()
        compiled: Any = torch.compile(model.half() if half else model, mode="max-autotune")

        def run(arrays: Arrays) -> dict[str, Any]:
            with torch.inference_mode():
                tensors = {k: torch.from_numpy(a).cuda() for k, a in arrays.items()}
                if half:
                    tensors = {
                        k: t.half() if t.is_floating_point() else t for k, t in tensors.items()
                    }
                result = compiled(**tensors)
                results = result if isinstance(result, tuple) else (result,)
                return {str(i): each.cpu().numpy() for i, each in enumerate(results)}

        return Rival(run)


def _ort(graph: Path) -> Rival:
    import onnxruntime as ort  # noqa: PLC0415  a rival that may be missing

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise RuntimeError("no CUDA provider: pip install onnxruntime-gpu")
    session = ort.InferenceSession(str(graph), providers=["CUDAExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return Rival(lambda arrays: dict(zip(names, session.run(names, dict(arrays)), strict=True)))


def _polygraphy(engine: bytes, stack: ExitStack) -> Rival:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner  # noqa: PLC0415  as above

    runner = stack.enter_context(TrtRunner(EngineFromBytes(engine)))
    return Rival(lambda arrays: dict(runner.infer(dict(arrays), check_inputs=False)))
