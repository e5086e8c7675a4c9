"""Documents hold the tables that their scripts make of the committed results."""

from __future__ import annotations

import json

import pytest
from recipe import ROOT, load_script

HELD = (
    ("benchmarks/compiled.py", "as_table", "benchmarks/results/compiled-cpu.json", "docs/benchmarks.md", "compiled"),
    ("benchmarks/eval.py", "table", "benchmarks/results/eval-cpu.json", "docs/benchmarks.md", "eval-speed"),
    ("benchmarks/export.py", "table", "benchmarks/results/export-memory.json", "docs/export.md", "export-memory"),
    ("benchmarks/growth.py", "as_table", "benchmarks/results/growth-cpu.json", "docs/benchmarks.md", "growth"),
    ("benchmarks/load.py", "as_table", "benchmarks/results/load-cpu.json", "docs/benchmarks.md", "load"),
    ("benchmarks/memory.py", "table", "benchmarks/results/memory-sd1.json", "docs/training.md", "memory"),
    ("benchmarks/peers.py", "as_table", "benchmarks/results/peers.json", "docs/metrics.md", "peers"),
    (
        "benchmarks/profile_networks.py",
        "as_table",
        "benchmarks/results/profile-evaluation-cpu.json",
        "docs/benchmarks.md",
        "profile-evaluation",
    ),
    ("benchmarks/published.py", "table", "benchmarks/results/published.json", "docs/metrics.md", "published"),
    ("benchmarks/serve.py", "table", "benchmarks/results/serve-cpu.json", "docs/serve.md", "serve"),
    ("benchmarks/train.py", "table", "benchmarks/results/train-cpu.json", "docs/benchmarks.md", "train-speed"),
    ("benchmarks/watermark.py", "table", "benchmarks/results/watermark.json", "docs/reliability.md", "watermark"),
    ("eval/guidance.py", "table", "eval/results/mini/guidance.json", "docs/evaluate.md", "guidance"),
    ("eval/steps.py", "table", "eval/results/mini/steps.json", "docs/metrics.md", "steps"),
)


@pytest.mark.parametrize(("script", "table", "result", "document", "region"), HELD, ids=[held[-1] for held in HELD])
def test_a_document_holds_the_table_of_the_committed_result(
    script: str, table: str, result: str, document: str, region: str
) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    inside = text.partition(f"<!-- results:{region} -->")[2].partition(f"<!-- /results:{region} -->")[0]
    assert inside.strip() == getattr(load_script(script), table)(json.loads((ROOT / result).read_text()))
