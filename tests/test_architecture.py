"""The floors of the building: imports go down only, pillars do not know each other, files stay small."""

import ast
from pathlib import Path

import pytest

import tfmusic

PACKAGE = Path(tfmusic.__file__).parent
FLOORS = {
    "addons": 0, "backend": 0, "checksums": 0, "jsonfile": 0,
    "errors": 0, "config": 0, "configfile": 0, "console": 0, "contract": 0, "folders": 0, "quiet": 0,
    "section": 0, "soundconfig": 0, "dataconfig": 0,
    "datasets": 1, "features": 1, "records": 1, "models": 1, "scoring": 1, "rundir": 1,
    "converter": 2, "inputs": 2, "pretrained": 2, "reports": 2,
    "training": 3, "serving": 3,
    "benchmarks": 4,
    "commands": 5,
    "cli": 6, "__main__": 7,
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
STANDARD = {"tfmusic", "collections", "dataclasses", "json", "math", "numpy", "pathlib", "typing", "zipfile"}
HEAVY = {"tensorflow", "keras", "numpy", "pandas", "pydantic", "rich", "yaml"}


def part_of(module):
    return module.split(".")[1] if module.count(".") else ""


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
def test_imports_go_to_lower_floors_only(path):
    """A module imports its own package and parts of lower floors, nothing beside or above it."""
    me = part_of(name_of(path))
    if not me:
        return
    for module in imports(path):
        if module.startswith("tfmusic.") and (other := part_of(module)) in FLOORS and other != me:
            allowed = FLOORS[other] < FLOORS[me] or FLOORS[me] == FLOORS[other] == 0
            assert allowed, f"{name_of(path)} imports {module}"


def test_every_part_has_a_floor():
    """A new top-level part must be given its floor here."""
    assert {part_of(name_of(path)) for path in FILES} - {""} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_small(path):
    """No file is over 350 lines, none is named utils, common or helpers."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
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
