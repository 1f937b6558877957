"""The operator's side runs on what requirements.lock installs: the components' own libraries are there in tests only."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement

from blackstart.sources import checkout_root

REFUSING = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"the operator has no {{name}}", name=name)
sys.meta_path.insert(0, Refusing())
import blackstart.cli, blackstart.pivot, blackstart.seed, blackstart.components
"""


def in_tests_only() -> set[str]:
    """Return the top-level modules of the distributions that only the test group of pyproject.toml names."""
    project = tomllib.loads((checkout_root() / "pyproject.toml").read_text())
    own = {Requirement(line).name for line in project["project"]["dependencies"]}
    tests = {Requirement(line).name for line in project["dependency-groups"]["test"]} - own
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if tests & {name.lower() for name in names}
    }


def test_the_operators_commands_need_no_library_of_a_component():
    names = in_tests_only()
    assert {"redis", "sqlalchemy", "fastapi", "docker"} <= names
    done = subprocess.run(
        [sys.executable, "-c", REFUSING.format(names=names)], cwd=checkout_root(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
