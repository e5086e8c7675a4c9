"""The script that a module of these tests is about, by its ``SCRIPT``."""

from __future__ import annotations

from typing import Any

import pytest
from recipe import load_script


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> Any:
    return load_script(f"benchmarks/{request.module.SCRIPT}.py")
