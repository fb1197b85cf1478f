"""What several test modules share."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

with suppress(ImportError):  # the environment of Unsloth is without it
    from hypothesis import settings

    settings.register_profile("unhurried", deadline=None)
    settings.register_profile("thorough", deadline=None, max_examples=2000)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unhurried"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny models and shards of every kind, and caches of their own beside them; see `tiny_models`."""
    import datasets

    from tests.tiny_models import place

    root = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "datasets"))
        patch.setenv("TRAINGLUE_CACHE", str(root / "cache"))
        yield place(root)
