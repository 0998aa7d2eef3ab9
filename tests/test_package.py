"""The wheel holds what the commands need."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_wheel_ships_the_configs(tmp_path):
    """Configs and every module travel in the wheel, tests and records do not; `fit q2` finds its config there."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"tfmusic/shipped_configs/{name}.yaml" for name in ("q1", "q2", "q3", "demo")} <= names
    endings = (".py", ".html", ".md", ".css", ".js")  # modules, templates and the page of `serve`
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
