"""The operator's script: when its virtual environment is made anew."""

import importlib.util
from pathlib import Path

import pytest

from blackstart.sources import checkout_root


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return bootstrap.py as a module that works on `tmp_path` and installs nothing; what it would run is in `ran`."""
    spec = importlib.util.spec_from_file_location("bootstrap", checkout_root() / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "_run", lambda argv, env=None: module.ran.append(argv))
    for name in ("python", "pip"):
        path = tmp_path / ".venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return module


def lock(folder: Path, text: str) -> Path:
    path = folder / "requirements.lock"
    path.write_text(text)
    return path


def test_the_environment_is_that_of_the_lock(script, tmp_path):
    path = lock(tmp_path, "one")
    assert not script._is_current(path)
    script._make_environment(tmp_path / "python", path)
    assert "--require-hashes" in script.ran[-1]
    assert script.ran[-1][-1] == str(path)
    assert script._is_current(path)


def test_going_back_to_an_older_lock_makes_its_environment_again(script, tmp_path):
    script._make_environment(tmp_path / "python", lock(tmp_path, "older"))
    script._make_environment(tmp_path / "python", lock(tmp_path, "newer"))
    assert not script._is_current(lock(tmp_path, "older"))
    assert script._is_current(lock(tmp_path, "newer"))


def test_an_environment_that_could_not_be_made_is_not_taken_for_one(script, tmp_path, monkeypatch):
    path = lock(tmp_path, "one")

    def fail(argv, env=None):
        raise SystemExit("pip failed")

    monkeypatch.setattr(script, "_run", fail)
    with pytest.raises(SystemExit):
        script._make_environment(tmp_path / "python", path)
    assert not script._is_current(path)
