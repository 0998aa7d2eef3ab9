"""The layers of the packages: imports go down only, without circles."""

import ast
import sys
from pathlib import Path

import pytest

import tfmusic

PACKAGE = Path(tfmusic.__file__).parent
LAYERS = (  # each imports from those below it; those of one line do not know each other
    ("errors",),
    ("console",),
    ("core",),
    ("datasets", "features", "records", "models", "scoring"),
    ("config",),
    ("pretrained", "inputs", "records.build"),
    ("inference",),
    ("evaluation",),
    ("reports",),
    ("training",),
    ("export",),
    ("integrity",),
    ("server",),
    ("api",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
FILES = sorted(PACKAGE.rglob("*.py"))
STANDARD = {"tfmusic", "numpy"} | sys.stdlib_module_names
HEAVY = {"tensorflow", "keras", "numpy", "pandas", "pydantic", "rich", "yaml"}


def part_of(module):
    parts = module.split(".")[1:]
    return "records.build" if parts[:2] == ["records", "build"] else parts[0] if parts else ""


def name_of(path):
    return ".".join(("tfmusic", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_to_lower_layers_only(path):
    """A module imports its own package and packages of lower layers, nothing beside or above it."""
    me = part_of(name_of(path))
    if not me:
        return
    for module in imports(path):
        if module.startswith("tfmusic.") and (other := part_of(module)) in LAYER and other != me:
            assert LAYER[other] < LAYER[me], f"{name_of(path)} imports {module}"


def test_no_circle_of_files():
    """No module imports, directly or through others, itself; imports inside functions count as well."""
    names = {name_of(path) for path in FILES}
    packages = {name_of(path) for path in FILES if path.name == "__init__.py"}  # a module's own is no circle
    edges = {name_of(path): set(imports(path)) & (names - packages) for path in FILES}
    done, path_to = set(), []

    def visit(name):
        assert name not in path_to, " -> ".join([*path_to[path_to.index(name) :], name])
        if name in done:
            return
        path_to.append(name)
        for other in sorted(edges[name]):
            visit(other)
        done.add(path_to.pop())

    for name in sorted(names):
        visit(name)


def test_every_package_has_a_layer():
    """A new package must be given its layer here."""
    assert {part_of(name_of(path)) for path in FILES} - {""} == set(LAYER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_a_catch_all(path):
    """A file is named after its subject."""
    assert path.stem not in ("utils", "common", "helpers")


@pytest.mark.parametrize(
    "path", [p for p in FILES if part_of(name_of(p)) in ("commands", "cli", "errors")], ids=name_of
)
def test_commands_import_nothing_heavy_at_the_top(path):
    """`--help` and wrong arguments answer before any large package is loaded."""
    assert not {module.split(".")[0] for module in imports(path, top_level_only=True)} & HEAVY


@pytest.mark.parametrize("path", [p for p in FILES if part_of(name_of(p)) == "models"], ids=name_of)
def test_models_import_keras_only(path):
    """Model code runs on every backend of Keras."""
    outside = {module.split(".")[0] for module in imports(path)} - STANDARD
    assert outside <= {"keras"}


def test_scoring_is_numpy_only():
    """Metrics, aggregation and calibration need no machine-learning package."""
    roots = {module.split(".")[0] for path in (PACKAGE / "scoring").glob("*.py") for module in imports(path)}
    assert not roots & {"tensorflow", "keras", "sklearn", "pandas"}
