"""The engine of a process where Unsloth is installed and does not import."""

from __future__ import annotations

import sys

import pytest

from datakit.errors import UsageError
from trainglue import engines


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Installs an Unsloth that imports other modules, which are stubs, and fails then."""
    for name in ("unsloth", *engines.PATCHED):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("HF_HUB_DISABLE_TELEMETRY", "UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DATASET_NUM_PROC"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(engines, "_used", None)
    monkeypatch.syspath_prepend(tmp_path)

    def install(*imports):
        for name in imports:
            (tmp_path / f"{name}.py").touch()
        lines = [*(f"import {name}" for name in imports), "raise NotImplementedError('no GPU')"]
        (tmp_path / "unsloth.py").write_text("\n".join(lines))

    yield install
    for name in engines.PATCHED:
        sys.modules.pop(name, None)


def test_trl_takes_over_where_nothing_was_imported(broken):
    broken()
    chosen, why = engines.choose("auto", ".")
    assert chosen == "trl"
    assert "NotImplementedError: no GPU" in why


@pytest.mark.parametrize("name", engines.PATCHED)
def test_a_process_that_may_be_patched_halfway_trains_nothing(name, broken):
    broken(name)
    with pytest.raises(UsageError, match="NotImplementedError: no GPU") as caught:
        engines.choose("auto", ".")
    assert "--engine trl" in caught.value.hint
    with pytest.raises(UsageError, match="asks for trl"):
        engines.choose("trl", ".")
