"""Mutation test of the verifier (S4).

    python -m tests.trust.mutation STORE FOLDER [MODULE...]

One place of what decides about a load is changed at a time: a refusal or a check is taken away,
a condition turned round, a bound moved, an ``and`` made an ``or``, an element dropped of a row
of checks. The corpus of attacks must notice; where it does not, the tests beside it must.
Prints one JSON document: each mutant, and what noticed it.

A mutant is the code of one function, replaced in a fork of this process. What a test starts as
a process of its own runs unchanged, so that a figure is a lower bound; what only such a process
runs (the child of a first load) is not changed here.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import json
import os
import shutil
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.trust import corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = (
    "trtbuild.trust.candidate",
    "trtbuild.trust.checks",
    "trtbuild.trust.claims",
    "trtbuild.trust.content",
    "trtbuild.trust.dsse",
    "trtbuild.trust.evidence",
    "trtbuild.trust.keys",
    "trtbuild.trust.lockfile",
    "trtbuild.trust.memory",
    "trtbuild.trust.policy",
    "trtbuild.trust.statements",
    "trtbuild.trust.strict_json",
    "trtbuild.trust.versions",
    "trtbuild.runtime.admission",
    "trtbuild.runtime.attached",
    "trtbuild.runtime.canary",
    "trtbuild.runtime.io_signature",
    "trtbuild.runtime.load",
    "trtbuild.runtime.machine",
    "trtbuild.runtime.made_here",
    "trtbuild.runtime.trust_files",
    "trtbuild.store.resolve",
    "trtbuild.store.statements",
)
TESTS = (
    *("tests/store/test_resolve.py", "tests/runtime/test_attached.py"),
    *("tests/runtime/test_made_here.py", "tests/runtime/test_load.py", "tests/trust"),
)
"""Beside the corpus; what is done fast comes first."""

WORDS = {"_no_release", "_place", "key_table", "revoked_table", "json_schema"}
"""Functions that decide nothing: they make a message or a file's text."""
SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
SECONDS = 1200
"""For all tests; without a change they take a third of it on two processors."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A changed function; ``what`` says how, ``code`` is what it runs now."""

    module: str
    function: str
    line: int
    what: str
    code: types.CodeType

    @property
    def name(self) -> str:
        return (
            f"{self.module.removeprefix('trtbuild.')}:{self.line} {self.function}: {self.what}"
        )


def functions(module: types.ModuleType) -> dict[tuple[str, int], types.FunctionType]:
    """Return the functions and methods that a module defines, by name and first line."""
    found: dict[tuple[str, int], types.FunctionType] = {}
    owners = [module, *(each for each in vars(module).values() if inspect.isclass(each))]
    for owner in owners:
        if getattr(owner, "__module__", module.__name__) != module.__name__:
            continue
        for value in vars(owner).values():
            inner = value.fget if isinstance(value, property) else value
            inner = inspect.unwrap(getattr(inner, "__func__", inner)) if callable(inner) else 0
            if isinstance(inner, types.FunctionType) and inner.__module__ == module.__name__:
                code = inner.__code__
                found[code.co_name, code.co_firstlineno] = inner
    return found


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from codes(each)


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], ast.AST]]]:
    """Return the changes that are tried at one node, as words and what makes the new node."""
    if isinstance(node, ast.Raise):
        yield "refusal taken away", lambda old: ast.copy_location(ast.Pass(), old)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = ast.unparse(node.value.func)
        yield f"no call of {called}", lambda old: ast.copy_location(ast.Pass(), old)
    if isinstance(node, ast.If | ast.IfExp):
        yield f"not ({ast.unparse(node.test)})", _turned
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            other = SWAPS[type(operator)]
            words = f"{ast.unparse(node)} with {other.__name__}"
            yield words, functools.partial(_compared, at=at, other=other)
    if isinstance(node, ast.BoolOp):
        yield f"and/or in {ast.unparse(node)}", _joined
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"no 'not' in {ast.unparse(node)}", _plain
    if isinstance(node, ast.Tuple) and _row(node):
        for at, element in enumerate(node.elts):
            words = f"without {ast.unparse(element)[:60]}"
            yield words, functools.partial(_shorter, at=at)


def _row(node: ast.Tuple) -> bool:
    kinds = {type(each) for each in node.elts}
    return len(node.elts) > 1 and kinds in ({ast.Lambda}, {ast.Tuple})


def _turned(old: ast.AST) -> ast.AST:
    assert isinstance(old, ast.If | ast.IfExp)
    old.test = ast.copy_location(ast.UnaryOp(op=ast.Not(), operand=old.test), old.test)
    return old


def _plain(old: ast.AST) -> ast.AST:
    assert isinstance(old, ast.UnaryOp)
    return old.operand


def _compared(old: ast.AST, at: int, other: type[ast.cmpop]) -> ast.AST:
    assert isinstance(old, ast.Compare)
    old.ops[at] = other()
    return old


def _joined(old: ast.AST) -> ast.AST:
    assert isinstance(old, ast.BoolOp)
    old.op = ast.Or() if isinstance(old.op, ast.And) else ast.And()
    return old


def _shorter(old: ast.AST, at: int) -> ast.AST:
    assert isinstance(old, ast.Tuple)
    del old.elts[at]
    return old


class _Once(ast.NodeTransformer):
    """Changes the node that is the ``place``-th of a walk, and no other."""

    def __init__(self, place: int, make: Callable[[ast.AST], ast.AST]) -> None:
        self.left, self.make = place, make

    def visit(self, node: ast.AST) -> ast.AST:
        self.left -= 1
        if self.left == -1:
            return self.make(node)
        return self.generic_visit(node)


def _order(tree: ast.AST) -> Iterator[ast.AST]:
    """Return nodes in the order in which :class:`_Once` meets them."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        yield from _order(child)


def mutants(name: str) -> Iterator[Mutant]:
    """Return every mutant of a module's functions."""
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    tree, path = ast.parse(source), module.__file__ or name
    live = functions(module)
    inside = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)]
    owner: dict[int, ast.FunctionDef] = {}
    for function in inside:  # walked from the outside in, so that the innermost stays
        for node in ast.walk(function):
            owner[id(node)] = function
    for place, node in enumerate(_order(tree)):
        function_of = owner.get(id(node))
        if function_of is None or function_of.name in WORDS:
            continue
        for what, make in changes(node):
            changed = ast.fix_missing_locations(_Once(place, make).visit(copy.deepcopy(tree)))
            assert isinstance(changed, ast.Module)
            whole = compile(changed, path, "exec")
            first = min((function_of.lineno, *(d.lineno for d in function_of.decorator_list)))
            key = function_of.name, first
            code = next((c for c in codes(whole) if (c.co_name, c.co_firstlineno) == key), None)
            if code is None or key not in live:
                message = f"{path}:{function_of.lineno}: no function to change"
                raise LookupError(message)
            line = getattr(node, "lineno", function_of.lineno)
            yield Mutant(
                module=name, function=function_of.name, line=line, what=what, code=code
            )


def applied(mutant: Mutant) -> None:
    live = functions(importlib.import_module(mutant.module))
    live[mutant.function, mutant.code.co_firstlineno].__code__ = mutant.code


def attacked(store: Path, folder: Path) -> str:
    """Return the first attack whose outcome is another one, empty where there is none."""
    names = ["good", *corpus.ordered()]
    for name in names:
        try:
            outcome = corpus.attempt(name, store, folder / name)
        except Exception as error:  # noqa: BLE001  a mutant may do anything
            return f"{name}: {type(error).__name__}"
        expected = "loaded" if name == "good" else corpus.CASES[name][0]
        if outcome.code != expected or outcome.memory_changed is not (name == "good"):
            return f"{name}: {outcome.code.splitlines()[0][:80]}"
    return ""


def tested() -> str:
    """Return the first test that fails, empty where none does."""
    failed: list[str] = []

    class Seen:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid.rpartition("/")[2])

    root = Path(__file__).parents[2]
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "-m", "not nightly"]
    arguments += [f"--ignore={root / 'tests/trust/test_corpus.py'}"]
    arguments += [str(root / each) for each in TESTS]
    pytest.main(arguments, plugins=[Seen()])
    return failed[0] if failed else ""


def forked(work: Callable[[], str]) -> str:
    """Return what ``work`` returns in a fork of this process; the signal, if it died by one.

    Raises:
        RuntimeError: it ended without an answer, which says nothing about a mutant.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        signal.alarm(SECONDS)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            answer = f"={work()}"
        except BaseException as error:  # noqa: BLE001  the parent is to know
            answer = f"!{error!r}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer.startswith("="):
        return answer[1:]
    if status < 0:
        return f"died by {signal.Signals(-status).name}"
    message = f"the test itself ended with {status}: {answer[1:] or 'no answer'}"
    raise RuntimeError(message)


def noticed(mutant: Mutant, store: Path, folder: Path) -> tuple[str, str]:
    """Return what noticed the mutant, ``corpus``, ``tests`` or nothing, and by which case.

    ``error`` where that cannot be told.
    """

    def by_corpus() -> str:
        applied(mutant)
        return attacked(store, folder)

    def by_tests() -> str:
        applied(mutant)
        return tested()

    for kind, work in (("corpus", by_corpus), ("tests", by_tests)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            found = forked(work)
        except RuntimeError as error:
            return "error", str(error)
        if found:
            return kind, found
    return "", ""


def main(store: str, folder: str, *names: str) -> None:
    own = Path(folder)
    shutil.rmtree(own, ignore_errors=True)
    wrong = forked(lambda: attacked(Path(store), own / "unchanged"))
    wrong = wrong or forked(tested)
    assert not wrong, f"something fails without a change: {wrong}"
    rows = []
    for mutant in [each for name in names or MODULES for each in mutants(name)]:
        kind, by = noticed(mutant, Path(store), own / "mutant")
        rows.append({"mutant": mutant.name, "noticed": kind, "by": by})
        mark = f"{kind}: {by}" if kind else "SURVIVED"
        sys.stderr.write(f"{mutant.name} -> {mark}\n")
    kinds = [row["noticed"] for row in rows]
    caught, errors = sum(kind in ("corpus", "tests") for kind in kinds), kinds.count("error")
    figures = {"mutants": len(rows), "noticed": caught, "errors": errors}
    sys.stdout.write(json.dumps({**figures, "rows": rows}))
    sys.exit(bool(errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
