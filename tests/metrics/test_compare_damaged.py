"""Comparisons of evaluations whose index is damaged."""

from __future__ import annotations

from typing import Any

import pytest

from roentgen.metrics.report.compare import Evaluation, _differences


@pytest.mark.parametrize("inputs", [None, [], "x", {}, {"synthetic": None}, {"synthetic": [1]}, {"synthetic": "x"}])
def test_an_index_that_does_not_say_its_size(inputs: Any) -> None:
    whole = Evaluation("a", {"key": {}, "inputs": {"synthetic": {"n": 4}}}, {}, {})
    damaged = Evaluation("b", {"key": {}, "inputs": inputs}, {}, {})
    assert any("b" in said for said in _differences([whole, damaged]))
