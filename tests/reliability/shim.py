"""A library that makes system calls fail: loaded before libc, for processes of its own.

``arm(n, error)`` lets the n-th write, sync, link or close from now on fail; ``SHIM_LOCKS`` in
the environment is the error of every file lock, as file systems without locks answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>
static int left, code;
int arm(int calls, int error) { int was = left; left = calls; code = error; return was; }
static int fails(void) { if (left > 0 && --left == 0) { errno = code; return 1; } return 0; }
static int lockless(void) { const char *error = getenv("SHIM_LOCKS");
  if (error) errno = atoi(error); return error != 0; }
#define NEXT(name, kind) ((kind)dlsym(RTLD_NEXT, name))
ssize_t write(int f, const void *b, size_t n) {
  return fails() ? -1 : NEXT("write", ssize_t (*)(int, const void *, size_t))(f, b, n); }
int fsync(int f) { return fails() ? -1 : NEXT("fsync", int (*)(int))(f); }
int linkat(int a, const char *b, int c, const char *d, int e) { return fails() ? -1 :
  NEXT("linkat", int (*)(int, const char *, int, const char *, int))(a, b, c, d, e); }
int link(const char *a, const char *b) {
  return fails() ? -1 : NEXT("link", int (*)(const char *, const char *))(a, b); }
int close(int f) { int bad = fails(); int r = NEXT("close", int (*)(int))(f);
  if (bad) { errno = code; return -1; } return r; }
int flock(int f, int how) {
  return lockless() ? -1 : NEXT("flock", int (*)(int, int))(f, how); }
static int control(const char *name, int f, int what, void *more) {
  int locks = what == F_SETLK || what == F_SETLKW ||
    what == F_OFD_SETLK || what == F_OFD_SETLKW;
  return locks && lockless() ? -1 : NEXT(name, int (*)(int, int, void *))(f, what, more); }
#define CONTROL(name) int name(int f, int what, ...) { va_list l; va_start(l, what); \\
  void *more = va_arg(l, void *); va_end(l); return control(#name, f, what, more); }
CONTROL(fcntl)
CONTROL(fcntl64)
"""


def shimmed(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of processes under the shim, which is compiled in ``folder``."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    (folder / "shim.c").write_text(SOURCE)
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "shim.c", "-ldl"], check=True
    )
    return {**os.environ, "LD_PRELOAD": str(library), **more}
