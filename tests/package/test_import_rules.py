"""A file imports only what stands above it in the data flow, and few files know auto_LiRPA or Triton."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "lirpa_lip"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top of the data flow down; a unit is a file or a folder of the package. New units go in at their place.
LAYERS = """
errors memory memory_limit ranges methods precision config results nn regions norms activations autolirpa
network wrapping trust local jacobian search margin dispatch bounded_module comparison losses training plots verify
certifying cli
""".split()

KNOW_AUTO_LIRPA = {"__init__", "autolirpa", "wrapping", "trust", "local", "search", "dispatch", "bounded_module"}


def imported_modules(source: str, package: tuple[str, ...]) -> set[str]:
    """Absolute names of all modules a source file imports, anywhere in it, relative imports resolved."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    return imported_modules(path.read_text(encoding="utf-8"), ("lirpa_lip", *path.relative_to(PACKAGE).parts[:-1]))


def upward_violations(unit: str, imports: set[str]) -> list[str]:
    """Units that stand below the one which imports them."""
    used = {name.split(".")[1] for name in imports if name.startswith("lirpa_lip.")} & set(LAYERS)
    return sorted(other for other in used if LAYERS.index(other) > LAYERS.index(unit))


def test_every_unit_has_its_place():
    missing = {unit_of(path) for path in FILES} - set(LAYERS) - {"__init__", "__main__"}
    assert not missing, f"put {sorted(missing)} into LAYERS, where the data flow has them"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports(path):
    unit, imports = unit_of(path), imports_of(path)
    roots = {name.split(".")[0] for name in imports}
    if unit in LAYERS:
        assert not upward_violations(unit, imports)
    if unit not in KNOW_AUTO_LIRPA:
        assert "auto_LiRPA" not in roots
    if path != PACKAGE / "norms" / "kernels" / "triton.py":
        assert "triton" not in roots


def kind_tests(source: str, name: str) -> list[int]:
    """Lines that ask whether something is of a class."""
    asked = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and len(node.args) == 2]
    asked = [node for node in asked if isinstance(node.func, ast.Name) and node.func.id == "isinstance"]
    return [node.lineno for node in asked if name in ast.unparse(node.args[1])]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_activation_is_asked_for_what_it_knows_and_not_for_its_kind(path):
    if unit_of(path) != "activations":
        assert kind_tests(path.read_text(encoding="utf-8"), "PiecewiseLinear") == []


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Files that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending.extend(graph[name])
        return seen

    return sorted(name for name in graph if name in reached(name))


def test_no_file_imports_itself_by_way_of_others():
    names = {path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}
    files = {name for path, name in names.items() if path.name != "__init__.py"}
    graph = {name: imports_of(path) & files for path, name in names.items() if name in files}
    assert circles(graph) == []


def test_the_rules_can_fail():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    imports = imported_modules(
        "from ..cli import main\nfrom . import lanczos\nimport triton.language", ("lirpa_lip", "norms")
    )
    assert {"lirpa_lip.cli", "lirpa_lip.norms.lanczos", "triton.language"} <= imports
    assert upward_violations("norms", imports) == ["cli"]
    assert kind_tests("isinstance(f, (Smooth, PiecewiseLinear))\nPiecewiseLinear()", "PiecewiseLinear") == [1]


def test_no_test_imports_another():
    """What tests share lies in `networks`, `contracts`, `references` and `sampling`."""
    tests = PACKAGE.parent / "tests"
    for path in sorted(tests.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = [name for name in names if name.split(".")[-1].startswith("test_")]
            assert not found, f"{path.relative_to(tests)} imports {found}"
