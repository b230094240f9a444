"""What one run carries along: recipe, store, a private folder, and its stages so far."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from trtbuild.canonical import digest, encode
from trtbuild.engine import TensorSpec, Value
from trtbuild.errors import StoreError, TrtbuildError
from trtbuild.graph import Graph
from trtbuild.graph.model import files_of
from trtbuild.report.document import Finding, Stage
from trtbuild.runtime.made_here import made_here, was_made_here
from trtbuild.store import make_record
from trtbuild.store.lease import get_or_make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trtbuild.recipe import Recipe
    from trtbuild.store import Blob, Record, Store

T = TypeVar("T")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StoredGraph(Value, frozen=True, kw_only=True):
    """A graph as a record holds it: everything but a path, and what its stage found out."""

    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    detail: msgspec.Raw


@dataclass(frozen=True, kw_only=True)
class Context:
    """One run. ``work`` is a private folder on the store's file system, gone afterwards.

    ``say`` is told in a few words what begins; ``stages`` and ``findings`` collect what the
    report will list. ``budget`` is the drop of the metric that a searched policy may cost: the
    recipe's own gate, or that of the recipe an engine was built of, which is judged by another.
    With ``signs`` a key will sign what was measured: then it was measured here.
    """

    recipe: Recipe
    store: Store
    work: Path
    say: Callable[[str], None]
    budget: float | None = None
    signs: bool = False
    stages: list[Stage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def find(self, stage: str, text: str) -> None:
        """Add something that a reader of the report should know, once."""
        finding = Finding(stage=stage, text=text)
        if finding not in self.findings:
            self.findings.append(finding)

    def log(self, name: str, key: str, started: float, *, cached: bool) -> None:
        """Add a stage that began at ``started`` (``time.perf_counter``) and is done."""
        seconds = round(time.perf_counter() - started, 3)
        self.stages.append(Stage(name=name, key=key, cached=cached, seconds=seconds))

    def remembered(
        self, name: str, kind: str, preimage: Value, shape: type[T], make: Callable[[], T]
    ) -> T:
        """Return the value of a stage from the store, or make and store it.

        The key is the digest of ``preimage``. Of several processes one makes it.
        """
        key = digest(f"{kind}/v1", preimage)
        return self.stage(
            name,
            kind,
            key,
            lambda: make_record(kind, key, preimage, self._made(name, make)),
            shape,
        ).read(shape)

    def counts(self, measured: Record | None) -> bool:
        """Tell whether a stored measurement may be used: what is signed was measured here.

        Whoever may write to a tier may write there what an engine is said to be worth.
        """
        return measured is not None and (not self.signs or was_made_here(measured))

    def measured(self, name: str, preimage: Value, shape: type[T], make: Callable[[], T]) -> T:
        """Return a measurement as :meth:`remembered` does, if it counts; else measure."""
        key = digest("report/v1", preimage)
        foreign = self.store.get("report", key, shape)
        if foreign is not None and not self.counts(foreign):
            return self._again(name, key, make)

        def record() -> Record:
            return made_here("report", key, preimage, self._made(name, make))

        found = self.stage(name, "report", key, record, shape)
        return found.read(shape) if self.counts(found) else self._again(name, key, make)

    def _again(self, name: str, key: str, make: Callable[[], T]) -> T:
        started = time.perf_counter()
        found = self._made(name, make)
        self.log(name, key, started, cached=False)
        return found

    def remembered_graph(
        self,
        name: str,
        kind: str,
        preimage: Value,
        shape: type[T],
        make: Callable[[Path], tuple[Graph, T]],
    ) -> tuple[Graph, T]:
        """Return the graph of a stage, and its detail, from the store, or make and store them.

        ``make`` gets the path to write the ONNX file to. The graph that is returned lies in
        the run's private folder.
        """
        key = digest(f"{kind}/v1", preimage)
        place = self.work / f"{kind}-{key[:16]}"
        made: list[tuple[Blob, ...]] = []

        def record() -> Record:
            with self.store.scratch() as folder:
                graph, detail = self._made(name, lambda: make(folder / "model.onnx"))
                blobs = self._put_files(files_of(graph.path))
                if not place.exists():  # what was just hashed need not be copied back
                    folder.rename(place)
                    made.append(blobs)
            value = StoredGraph(
                sha256=graph.sha256,
                inputs=graph.inputs,
                outputs=graph.outputs,
                detail=msgspec.Raw(encode(detail)),
            )
            return make_record(kind, key, preimage, value, blobs)

        found = self.stage(name, kind, key, record, StoredGraph)
        stored = found.read(StoredGraph)
        if made and found.blobs != made[0]:  # another process or host was first
            shutil.rmtree(place)
        return self._laid_out(found, stored, place), msgspec.json.decode(
            stored.detail, type=shape
        )

    def stage(
        self,
        name: str,
        kind: str,
        key: str,
        make: Callable[[], Record],
        shape: type[object],
    ) -> Record:
        """Return the record of a stage, made by one process if no one has, and log it.

        One that another version wrote, without a field of ``shape``, is made again.
        """
        started = time.perf_counter()
        record, cached = get_or_make(self.store, kind, key, make, shape)
        self.log(name, key, started, cached=cached)
        return record

    def _made(self, name: str, make: Callable[[], T]) -> T:
        self.say(name)
        return make()

    def _put_files(self, files: tuple[Path, ...]) -> tuple[Blob, ...]:
        return tuple(self.store.put_file(path.name, path) for path in files)

    def _laid_out(self, record: Record, stored: StoredGraph, folder: Path) -> Graph:
        """Copy the files of a stored graph to ``folder``, under their own names."""
        folder.mkdir(exist_ok=True)
        for blob in record.blobs:
            path = folder / blob.name
            if not path.exists():
                shutil.copyfile(self.store.verified_path(blob.sha256), path)
        return Graph(
            path=folder / record.blobs[0].name,
            sha256=stored.sha256,
            inputs=stored.inputs,
            outputs=stored.outputs,
        )


@contextlib.contextmanager
def working(recipe: Recipe, store: Store, say: Callable[[str], None]) -> Iterator[Context]:
    """Lend the context of one run; its private folder is deleted afterwards.

    Errors that name a file in that folder name the recipe instead: a user has no such file.

    Raises:
        StoreError: there is no room for a file of the run.
    """
    try:
        with store.scratch() as folder:
            budget = recipe.gates.max_drop
            yield Context(recipe=recipe, store=store, work=folder, say=say, budget=budget)
    except TrtbuildError as error:
        private = re.escape(str(store.top / "tmp")) + r"/[^\s:;,'\"]+"
        text = re.sub(private, recipe.name, str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreError(
            f"store {store.root}: {error.strerror}: the run needs room for its own files too. "
            f"Free space there, or give another folder with --store"
        ) from error
