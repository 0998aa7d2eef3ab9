"""Licences of everything that an installation brings along, as the packages themselves state them."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

FREE = re.compile(
    r"apache|\bmit\b|bsd|isc\b|psf|python software|mozilla|mpl|unlicense|cc0|zlib|historical|hpnd|lgpl", re.IGNORECASE
)
UNSTATED = {"namex"}  # whose licence file says Apache 2.0, and whose metadata nothing
WEAK_COPYLEFT = {"soxr", "certifi", "tqdm", "pillow", "shtab"}  # LGPL or MPL, in whole or in part: used as they are


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def brought_along(names):
    """Returns the installed distributions that some need, themselves included; extras and other systems left out."""
    found, todo = {}, list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another Python or system
            continue
        todo += [name_of(text) for text in found[name].requires or () if "extra ==" not in text]
    return found


def licence_of(distribution):
    about = distribution.metadata
    classifiers = [
        text.rpartition(":: ")[2] for text in about.get_all("Classifier", []) if text.startswith("License ::")
    ]
    stated = about.get("License-Expression") or " ".join(classifiers) or (about.get("License") or "").splitlines()[:1]
    return str(stated)


def test_every_licence_is_free():
    """All packages of a plain installation and of the extra `serve` are under licences that allow any use."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    found = brought_along(map(name_of, wanted))
    assert len(found) > 30
    licences = {name: licence_of(one) for name, one in found.items()}
    assert {name: text for name, text in licences.items() if not FREE.search(text)}.keys() <= UNSTATED
    copyleft = {name for name, text in licences.items() if re.search(r"gpl|mpl|mozilla", text, re.IGNORECASE)}
    assert copyleft <= WEAK_COPYLEFT
