"""The shape of the code itself: sizes of files and functions, docstrings, directions, names of mesh axes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("jaxvl", "launch", "configs", "bench") for p in (ROOT / folder).rglob("*.py"))
TREES = {p: ast.parse(p.read_text(encoding="utf-8")) for p in FILES}
FUNCTIONS = [
    (p, node)
    for p, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def length(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def test_files_stay_under_500_lines_and_most_under_300():
    sizes = {name(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert not {k: v for k, v in sizes.items() if v > 500}
    assert sum(v <= 300 for v in sizes.values()) >= 0.85 * len(sizes), sizes


def test_functions_stay_under_80_lines_and_most_under_40():
    sizes = [length(f) for _, f in FUNCTIONS]
    long = [
        f"{name(p)}:{f.name} {length(f)}"
        for p, f in FUNCTIONS
        if length(f) > (100 if f.name == "fit" else 80)
    ]
    assert not long
    assert sum(s <= 40 for s in sizes) >= 0.9 * len(sizes)


def test_public_modules_classes_and_functions_have_docstrings():
    missing = [
        name(p) for p, tree in TREES.items() if not ast.get_docstring(tree) and p.name != "__init__.py"
    ]
    for p, tree in TREES.items():
        if not name(p).startswith("jaxvl/"):
            continue
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{name(p)}:{node.name}")
    assert not missing


def test_only_layers_names_logical_axes_and_only_sharding_names_mesh_axes():
    logical = re.compile(r"with_logical_(partitioning|constraint)")
    mesh = re.compile(r"PartitionSpec|\bmake_mesh\b|NamedSharding\(")
    for p in FILES:
        if not name(p).startswith("jaxvl/"):
            continue
        text = p.read_text(encoding="utf-8")
        assert not logical.search(text) or p.name == "layers.py", name(p)
        assert not mesh.search(text) or p.name == "sharding.py", name(p)


def test_configs_and_types_stay_small():
    for p in (ROOT / "configs").glob("*.py"):
        assert len(p.read_text(encoding="utf-8").splitlines()) <= 150, p.name
    assert len((ROOT / "jaxvl/types.py").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((ROOT / "launch/main.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_types_imports_no_jax_at_run_time():
    code = "import sys, jaxvl.types; assert 'jax' not in sys.modules, 'jaxvl.types imports jax'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_pickle_of_the_standard_library_is_loaded():
    loads = re.compile(r"pickle\.loads?\(|allow_pickle=True|torch\.load")
    assert not [name(p) for p in FILES if loads.search(p.read_text(encoding="utf-8"))]


def test_import_contracts_hold():
    linter = pytest.importorskip("importlinter", reason="pip install '.[lint]' to check import contracts")
    assert linter
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
