"""Functions in C++ that are compiled for the machine's own processor when they are first needed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", "-w")

_lock = threading.Lock()


def native_function(source: Path, name: str, arguments: Sequence[Any]) -> Any:
    """The function ``name`` of ``source``, which returns nothing, or None without a compiler that takes it.

    The compiler is ``$CXX``, else ``g++``. It runs once per process and source.
    """
    with _lock:  # `cache` would let two threads compile it
        return compiled(source, name, tuple(arguments))


def compile_function(source: Path, name: str, arguments: tuple[Any, ...]) -> Any:
    """As ``native_function``, every time anew."""
    return _function(_compile(source), name, arguments)


def _compile(source: Path) -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        return None
    try:
        # Nothing is kept: a file in a home folder may be read by a machine with another processor.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            library = Path(folder, f"{source.stem}.so")
            subprocess.run([compiler, *_FLAGS, "-o", library, source], check=True, capture_output=True)
            return ctypes.CDLL(os.fspath(library))
    except (OSError, subprocess.CalledProcessError):
        return None


def _function(library: ctypes.CDLL | None, name: str, arguments: tuple[Any, ...]) -> Any:
    function = getattr(library, name, None)
    if function is not None:
        function.restype, function.argtypes = None, arguments
    return function


_libraries = cache(_compile)


@cache
def compiled(source: Path, name: str, arguments: tuple[Any, ...]) -> Any:
    return _function(_libraries(source), name, arguments)
