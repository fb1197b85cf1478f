"""How a process of ours begins: early with what takes long, and without what it has no use for.

pyarrow imports numpy where it can, and pandas as soon as an array is made of a list. Together they take longer to
import than all of datakit, and nothing here needs pandas, nor numpy where rows are converted. So the command line and
workers, whose processes are ours, let pyarrow find out that they are not there. A library must not do that to the
program that imports it.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from datakit.limit import ROOM, limit_memory


class _Hidden:
    """Says of packages that they cannot be imported."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"{name} is not imported here", name=name)


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    finder = _Hidden(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def lean_arrow(numpy: bool = True) -> None:
    """Import pyarrow without pandas, and without numpy unless it is wanted. Does nothing where it is imported already.

    Others may import both later; only pyarrow has made up its mind.
    """
    if {"pyarrow", "pandas"} & sys.modules.keys() or (not numpy and "numpy" in sys.modules):
        return
    with _hidden("pandas") if numpy else _hidden("numpy", "pandas"):
        import_module("pyarrow").array([0])  # it looks for pandas now, and never again


def collect_rarely() -> None:
    """For the command line: modules are imported in hundreds, and there is nothing among them to collect."""
    gc.set_threshold(50_000, 20, 100)


def worker(numpy: str, siblings: str, tokenizer: str) -> None:
    """The whole life of a worker process; its arguments are words of a command line.

    Args:
        numpy: empty where it is not needed.
        siblings: see `worker.main`.
        tokenizer: a tokenizer.json, or a folder with one, to be loaded while everything else is imported; or empty.
    """
    gc.disable()  # rows are trees without cycles; looking for some costs a third of the time
    if tokenizer:
        from datakit.tokens import engines

        limit_memory(ROOM)
        engines.load_early(tokenizer)
    lean_arrow(bool(numpy))
    from datakit.worker import main

    main(siblings)
