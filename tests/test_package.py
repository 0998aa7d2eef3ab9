"""The wheel holds what the commands need, and the project declares what its modules import."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_ships_the_configs(tmp_path):
    """Configs and every module travel in the wheel, tests and records do not; `fit q2` finds its config there.

    The sdist holds what makes the same wheel.
    """
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.glob("tfmusic-*/pyproject.toml")).parent
    subprocess.run([*command[:-1], str(tmp_path / "again"), "-t", "wheel"], cwd=source, check=True, capture_output=True)
    assert next((tmp_path / "again").glob("*.whl")).read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"tfmusic/shipped_configs/{name}.yaml" for name in ("q1", "q2", "q3", "demo")} <= names
    endings = (".py", ".typed", ".html", ".md", ".css", ".js")  # modules, templates and the page of `serve`
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tfmusic").rglob("*") if path.suffix in endings}
    assert {"tfmusic/reports/templates/report.html", "tfmusic/server/page/page.js"} <= files
    assert files <= names
    assert not [name for name in names if name.startswith(("tests", "records")) or "benchmark" in name]
    code = "from tfmusic.config.loading import find_config; print(find_config('q2'))"
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path / "site" / "tfmusic" / "shipped_configs" / "q2.yaml"


NOT_INSTALLED = {  # packages of extras that the tests' environment may lack
    "ai_edge_litert": "ai-edge-litert", "apache_beam": "apache-beam", "av": "av", "fsspec": "fsspec", "jax": "jax",
    "onnx": "onnx", "onnxruntime": "onnxruntime", "tensorflow_addons": "tensorflow-addons", "tf2onnx": "tf2onnx",
}  # fmt: skip


def imported_packages():
    """Returns the top-level packages that any module of tfmusic imports, also inside functions."""
    names = set()
    for path in (ROOT / "tfmusic").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"tfmusic"}


def test_every_import_is_declared():
    """Every package that is imported is in the dependencies or in an extra, and not just brought along by another."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for_users = [*project["dependencies"], *(line for name in extras if "test" not in name for line in extras[name])]
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in for_users}
    installed = packages_distributions()
    imports = imported_packages()
    assert {"numpy", "keras", "PIL"} <= imports
    for name in imports:
        distributions = installed.get(name) or [NOT_INSTALLED.get(name, name)]
        assert {text.lower().replace("_", "-") for text in distributions} & declared, f"{name}: add {distributions}"
