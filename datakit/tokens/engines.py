"""The two engines that turn texts into ids, and loading them ahead of time.

To load one takes up to a second, in Rust and without a lock of Python. So a worker begins with it before it imports
anything else, and this module imports next to nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal

from datakit.reading.limits import TOKENIZER

Engine = Literal["fastokens", "tokenizers"]


def fast_engine(definition: str) -> Any:
    """fastokens; it has no type hints that a checker can see.

    Args:
        definition: the text of a tokenizer.json.
    """
    engine = import_module("fastokens").Tokenizer.from_json_str(definition)
    engine.no_truncation()
    engine.no_padding()
    return engine


def exact_engine(definition: str) -> Any:
    """`tokenizers`, of the same text."""
    return import_module("tokenizers").Tokenizer.from_str(definition)


LOADS: Final[dict[Engine, Callable[[str], Any]]] = {"fastokens": fast_engine, "tokenizers": exact_engine}

_loaders: dict[Engine, threading.Thread] = {}
_loaded: dict[tuple[Engine, str], Any] = {}
"""Engines that were loaded before anyone asked, by the hash of the text that defines them."""


def load_early(path: str) -> None:
    """Begin to load both engines of a tokenizer.json, each in a thread; `taken` gives them out."""
    limit_threads(1)
    place = Path(path)
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        if file.stat().st_size > TOKENIZER:
            return
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return  # whoever needs the tokenizer will be told what is wrong with it
    for name, load in LOADS.items():
        _loaders[name] = threading.Thread(target=_load, args=[name, load, text], daemon=True)
        _loaders[name].start()


def _load(name: Engine, load: Callable[[str], Any], text: str) -> None:
    from hashlib import sha256

    try:
        _loaded[name, sha256(text.encode()).hexdigest()] = load(text)
    except BaseException as problem:  # as above
        reraise_foreign(problem)


def taken(name: Engine, hash: str) -> Any:
    """An engine that was loaded early, once; None where there is none for a definition with this hash."""
    loader = _loaders.pop(name, None)
    if loader is not None:
        loader.join()
    return _loaded.pop((name, hash), None)


def limit_threads(threads: int) -> None:
    """Tell both engines before they start a pool: fastokens splits even one long text over a thread per core."""
    os.environ["FASTOKENS_BPE_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def reraise_foreign(problem: BaseException) -> None:
    """Pass on what is not an error of an engine; a panic in Rust is no `Exception`."""
    if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
        raise problem
