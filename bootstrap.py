#!/usr/bin/env python3
"""The operator's script. Needs nothing but Python 3.11: it makes its own virtual environment from the lock, then runs.

python3 bootstrap.py up      from bare machines to a self-hosted platform
python3 bootstrap.py test    the whole test suite
python3 bootstrap.py check   lint and types
python3 bootstrap.py --help  everything else
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
LOCK, TEST_LOCK = "requirements.lock", "requirements-test.lock"
FOR_TESTS = ("test", "check")
INSTALL_SECONDS = 900


def main() -> None:
    """Make the environment where it is missing or old, and go on in it."""
    if sys.version_info < (3, 11):
        sys.exit(f"bootstrap.py needs Python 3.11 or newer; this is {sys.version.split()[0]}. Use Debian 12 or 13.")
    lock = ROOT / (TEST_LOCK if sys.argv[1:2] and sys.argv[1] in FOR_TESTS else LOCK)
    python = VENV / "bin" / "python"
    if not (_is_current(lock) or _is_current(ROOT / TEST_LOCK)):
        _make_environment(python, lock)
    os.chdir(ROOT)
    os.execv(python, [str(python), "-m", "blackstart", *sys.argv[1:]])


def _stamp(lock: Path) -> Path:
    return VENV / f".{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}.lock-stamp"


def _is_current(lock: Path) -> bool:
    return _stamp(lock).exists() and (VENV / "bin" / "python").exists()


def _make_environment(python: Path, lock: Path) -> None:
    print(f"Making {VENV.name} from {lock.name} …", file=sys.stderr)
    if not (VENV / "bin" / "pip").exists():
        _ensure_venv_module()
        _run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    for old in VENV.glob(".*.lock-stamp"):
        old.unlink()
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    _run([*pip, "--requirement", str(lock)])
    _stamp(lock).touch()


def _ensure_venv_module() -> None:
    """Debian ships Python without `ensurepip`."""
    if subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0:
        return
    if os.geteuid() != 0:
        sys.exit("python3-venv is missing. Install it (apt-get install python3-venv), or run this as root.")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-qq"], env=quiet)
    _run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "python3-venv"], env=quiet)


def _run(argv: list[str], env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(argv, env=env, stdout=sys.stderr, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(
            f"{' '.join(argv[:4])} did not end within {INSTALL_SECONDS} s. Check the network, then run this again."
        )
    if done.returncode != 0:
        sys.exit(
            f"{' '.join(argv[:4])} failed (exit code {done.returncode}). Its reason is above; run this again when it is removed."
        )


if __name__ == "__main__":
    main()
