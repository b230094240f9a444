"""What people run on a GPU else, as sessions: torch.compile, ONNX Runtime CUDA, Polygraphy.

FP32 is FP32 for all: TF32 is off in trtbuild's engines, and is switched off in the others.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trtbuild.graph.model import load_model, save_model
from trtbuild.pipeline.cast import cast
from trtbuild.pipeline.context import working
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.engine import TensorSpec
    from trtbuild.recipe import Recipe
    from trtbuild.store import Store

    Arrays = Mapping[str, npt.NDArray[Any]]


_TRIES = 2
"""A compiler compiles at the first call, and a CUDA graph is captured at the second."""


@dataclass(frozen=True)
class Rival:
    """A function of host arrays as a session; ``threaded`` is what many threads may call."""

    function: Callable[[Arrays], dict[str, Any]]
    threaded: Callable[[Arrays], dict[str, Any]]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, inputs: Arrays) -> dict[str, Any]:
        return self.function(inputs)

    def attempt(self, inputs: Arrays) -> None:
        """Call it here and in another thread, as the contest will, so that it fails now."""
        for _ in range(_TRIES):
            self.function(inputs)
        failed: list[Exception] = []

        def work() -> None:
            try:
                for _ in range(_TRIES):
                    self.threaded(inputs)
            except Exception as error:  # noqa: BLE001  raised again, in the thread that asked
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]


def arrays_of(result: object) -> dict[str, Any]:
    """Return what a model of PyTorch gives, a tensor or several, as arrays of the host."""
    if isinstance(result, Mapping):
        results = result
    else:
        several = result if isinstance(result, tuple) else (result,)
        results = {str(index): each for index, each in enumerate(several)}
    return {name: each.cpu().numpy() for name, each in results.items()}


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
        self, engine: bytes, backend: str, folder: Path, stack: ExitStack, arrays: Arrays
    ) -> dict[str, Rival]:
        """Return those that work here on ``arrays``, by name."""
        graph = self.graph(folder)
        half = self.precision != "fp32"
        kind = "fp16" if half else "fp32"
        makers: dict[str, Callable[[], Rival]] = {
            f"torch.compile {kind}": lambda: self._torch(half=half),
            f"ONNX Runtime CUDA {kind}": lambda: onnx_runtime(graph),
        }
        if backend == "tensorrt":
            makers["Polygraphy, same engine"] = lambda: _polygraphy(engine, stack)
        return self.working(makers, arrays)

    def working(
        self, makers: Mapping[str, Callable[[], Rival]], arrays: Arrays
    ) -> dict[str, Rival]:
        """Return those that can be made and called, by name."""
        found = {}
        for name, make in makers.items():
            try:
                rival = make()
                rival.attempt(arrays)
            except Exception as error:  # noqa: BLE001, PERF203  whatever fails, the others run
                self.missing.append(f"{name}: {type(error).__name__}: {error}")
            else:
                found[name] = rival
        return found

    def _torch(self, *, half: bool) -> Rival:
        import torch  # noqa: PLC0415  a rival that may be missing

        from trtbuild.sources.user_code import load_file  # noqa: PLC0415  as above

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        file, _, factory = (self.recipe.source.torch or "").rpartition(":")
        model = getattr(load_file(self.recipe.folder / file), factory)().cuda().eval()
        model = model.half() if half else model

        def compiled(mode: str) -> Callable[[Arrays], dict[str, Any]]:
            function: Any = torch.compile(model, mode=mode)

            def run(arrays: Arrays) -> dict[str, Any]:
                with torch.inference_mode():
                    tensors = {k: torch.from_numpy(a).cuda() for k, a in arrays.items()}
                    if half:
                        tensors = {
                            k: t.half() if t.is_floating_point() else t
                            for k, t in tensors.items()
                        }
                    return arrays_of(function(**tensors))

            return run

        # CUDA graphs of PyTorch belong to the thread that captured them and assert in any
        # other (pytorch/pytorch#123177), so that threads get none.
        return Rival(compiled("max-autotune"), compiled("max-autotune-no-cudagraphs"))


def onnx_runtime(graph: Path) -> Rival:
    """Return ONNX Runtime on a GPU.

    Raises:
        RuntimeError: it would run on the processor, which it does without a word where the
            provider's libraries are missing.
    """
    import onnxruntime as ort  # noqa: PLC0415  a rival that may be missing

    wanted = "CUDAExecutionProvider"
    if wanted not in ort.get_available_providers():
        raise RuntimeError("no CUDA provider: pip install onnxruntime-gpu")
    ort.preload_dlls()
    session = ort.InferenceSession(str(graph), providers=[(wanted, {"use_tf32": 0})])
    chosen = session.get_providers()[0]
    if chosen != wanted:
        raise RuntimeError(f"the CUDA provider did not start, {chosen} took its place")
    names = [each.name for each in session.get_outputs()]

    def run(arrays: Arrays) -> dict[str, Any]:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return Rival(run, run)


def _polygraphy(engine: bytes, stack: ExitStack) -> Rival:
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner  # noqa: PLC0415  as above

    runner = stack.enter_context(TrtRunner(EngineFromBytes(engine)))
    lock = threading.Lock()  # a runner is one execution context

    def run(arrays: Arrays) -> dict[str, Any]:
        with lock:
            return dict(runner.infer(dict(arrays), check_inputs=False))

    return Rival(run, run)
