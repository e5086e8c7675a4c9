"""The rooms of the house: imports point down only, and no circle."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# From the roof to the ground; what is not listed (files.py, images.py, errors.py, ...) is the ground itself.
ROOMS = (
    "cli", "commands", "recipes", "serving", "experiments", "synthesis", "metrics", "training", "generators", "reports",
    "models", "data", "prompts",
)  # fmt: skip
HEIGHT = {room: height for height, room in enumerate(reversed(ROOMS), start=1)}
ENTRANCES = {"roentgen", "roentgen.__main__"}  # they open every room


def modules(root: Path = ROOT) -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted((root / "roentgen").rglob("*.py"))
    }


def imported(tree: ast.AST, *, late: bool) -> list[str]:
    """Names below ``roentgen`` that a module imports; ``late`` counts those inside functions, too."""
    nodes = ast.walk(tree) if late else _at_import(tree)
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.split(".")[0] == "roentgen"]


def _at_import(tree: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not typing and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [node, *_at_import(node)]
    return found


def height(name: str) -> int:
    parts = name.split(".")
    return HEIGHT.get(parts[1], 0) if len(parts) > 1 else 0


def climbing(trees: dict[str, ast.Module]) -> list[str]:
    """Imports that point up."""
    return [
        f"{module} imports {name}"
        for module, tree in trees.items()
        if module not in ENTRANCES
        for name in imported(tree, late=True)
        if height(name) > height(module)
    ]


def circles(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that import each other when they are loaded."""
    graph = {}
    for module, tree in trees.items():
        names = imported(tree, late=False)
        graph[module] = {name if name in trees else name.rpartition(".")[0] for name in names} & set(trees) - {module}
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [" -> ".join([*way[way.index(module) :], module])]
        if module in done:
            return []
        found = [circle for other in sorted(graph[module]) for circle in visit(other, [*way, module])]
        done.add(module)
        return found

    return [circle for module in graph for circle in visit(module, [])]


def test_imports_point_down() -> None:
    assert climbing(modules()) == []


def test_no_modules_import_each_other() -> None:
    assert circles(modules()) == []


def test_only_scripts_open_the_experiments() -> None:
    inside = [
        module
        for module, tree in modules().items()
        if not module.startswith("roentgen.experiments")
        and any(name.startswith("roentgen.experiments") for name in imported(tree, late=True))
    ]
    assert inside == []


def test_families_of_generators_do_not_know_each_other() -> None:
    families = [path.name for path in (ROOT / "roentgen" / "generators").iterdir() if (path / "__init__.py").is_file()]
    for module, tree in modules().items():
        mine = module.split(".")[2:3]
        if module.startswith("roentgen.generators.") and mine and mine[0] in families:
            others = {f"roentgen.generators.{family}" for family in families if family != mine[0]}
            assert not [name for name in imported(tree, late=True) if any(name.startswith(o) for o in others)], module


def test_an_import_that_climbs_and_a_circle_are_seen() -> None:
    trees = {
        "roentgen.data.a": ast.parse("def f():\n    from roentgen.metrics import b"),
        "roentgen.metrics.b": ast.parse("from roentgen.metrics import c"),
        "roentgen.metrics.c": ast.parse("import roentgen.metrics.b"),
    }
    assert climbing(trees) == ["roentgen.data.a imports roentgen.metrics.b"]
    assert circles(trees) == ["roentgen.metrics.b -> roentgen.metrics.c -> roentgen.metrics.b"]
