"""What holds across the whole package: the direction of imports, lazy torch, no unpickling."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import neural_graphs

PACKAGE = Path(neural_graphs.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Part of the package -> the parts that it may import. The leaf modules may be imported by all.
LEAVES = {"errors", "_io", "_inputs", "_memory", "_progress", "_settings", "_threads"}
ARROWS = {
    "graph": set(),
    "nn": {"graph"},
    "zoo": {"graph"},
    "tasks": {"graph", "nn", "zoo"},
    "optim": {"graph", "nn", "zoo"},
    "explore": {"graph", "nn", "zoo", "tasks", "optim"},
    "testing": {"graph", "nn", "zoo", "tasks", "optim"},
    "bench": {"graph", "nn", "zoo", "tasks", "optim", "explore", "testing"},
    "cli": {"graph", "nn", "zoo", "tasks", "optim", "explore", "testing", "bench"},
    "__main__": {"cli"},
} | {leaf: set() for leaf in LEAVES}

UNSAFE = {"pickle.load", "pickle.loads", "joblib.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, wherever in the file; `from a import b` gives `a.b`."""
    package = ("neural_graphs", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    names = (module.split(".") for module in imported_modules(path))
    return {name[1] for name in names if name[0] == "neural_graphs" and len(name) > 1} - {"__version__"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def has_keyword(call: ast.Call, name: str, value: bool) -> bool:
    return any(
        keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value is value
        for keyword in call.keywords
    )


def test_every_part_has_its_arrows() -> None:
    assert {part_of(path) for path in FILES} - {"__init__"} <= ARROWS.keys()


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) != "__init__"], ids=str)
def test_imports_follow_the_arrows(path: Path) -> None:
    part = part_of(path)
    wrong = imported_parts(path) - ARROWS[part] - LEAVES - {part}
    assert not wrong, f"{part} must not import {sorted(wrong)}"


def test_the_import_reader_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "graph").mkdir()
    path = tmp_path / "graph" / "_file.py"
    path.write_text(
        "import neural_graphs.nn\nfrom neural_graphs import zoo, __version__\nfrom ..tasks import x\n"
        "def f():\n    from .. import explore\n    from . import _spec\n    import torch\n"
    )
    assert imported_parts(path) == {"nn", "zoo", "tasks", "explore", "graph"}


@pytest.mark.parametrize(
    "statement", ["import neural_graphs", "import neural_graphs.cli", "import neural_graphs.errors"]
)
def test_torch_is_not_imported(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(PACKAGE.parent)}).returncode == 0


def test_public_names_resolve() -> None:
    assert {name for name in dir(neural_graphs) if getattr(neural_graphs, name, None) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        neural_graphs.nonsense  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=str)
def test_untrusted_files_cannot_run_code(path: Path) -> None:
    for function, call in calls(path):
        line = f"{path}:{call.lineno}"
        if function == "torch.load":
            assert has_keyword(call, "weights_only", True), f"{line}: torch.load without weights_only=True"
        if function == "yaml.load":  # a loader of our own, which is a subclass of SafeLoader
            assert len(call.args) == 2 and not ast.unparse(call.args[1]).startswith("yaml."), line
        assert function not in UNSAFE, line
        assert not has_keyword(call, "allow_pickle", True), f"{line}: allow_pickle=True"
