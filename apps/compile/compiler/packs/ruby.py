"""The `ruby` buildpack: Gemfile and Gemfile.lock, installed by Bundler into /app/vendor/bundle."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from compiler import kit, output
from compiler.errors import AppRefused
from compiler.kit import Ran, Work

BUNDLE = "vendor/bundle"
GEM_CACHE = "vendor/cache"
WITHOUT = "development:test"
PROFILE = """\
export BUNDLE_DEPLOYMENT=true
export BUNDLE_PATH="$HOME/vendor/bundle"
export BUNDLE_WITHOUT=development:test
export BUNDLE_VERSION=system
export PATH="$HOME/bin:$PATH"
export RACK_ENV="${RACK_ENV:-production}"
export RAILS_ENV="${RAILS_ENV:-production}"
export RAILS_LOG_TO_STDOUT="${RAILS_LOG_TO_STDOUT:-enabled}"
export RAILS_SERVE_STATIC_FILES="${RAILS_SERVE_STATIC_FILES:-enabled}"
export WEB_CONCURRENCY="${WEB_CONCURRENCY:-2}"
"""


def compile(arguments: list[str]) -> int:
    """Install the app's gems."""
    return kit.compiling(arguments, _compile)


def release(arguments: list[str]) -> int:
    """Give Puma, or what rackup finds, for an app with config.ru."""
    build = Path(arguments[0])
    if not (build / "config.ru").is_file():
        return kit.released({})
    lock = (build / "Gemfile.lock").read_text(errors="replace")
    if re.search(r"^    puma \(", lock, re.M):
        return kit.released({"web": "bundle exec puma --port $PORT"})
    return kit.released({"web": "bundle exec rackup --host 0.0.0.0 --port $PORT"})


def _compile(work: Work) -> None:
    _check_lock(work.build)
    ruby = " ".join(kit.tool_version(["ruby", "--version"]).split()[:2]).capitalize()
    output.step(f"Using {ruby}, {kit.tool_version(['bundle', '--version'])}")
    env = bundler_environment(work)
    _restore(work)
    output.step("Installing Gemfile.lock with Bundler")
    local = ["--local"] if (work.build / GEM_CACHE).is_dir() else []
    ran = kit.run(["bundle", "install", "--jobs", "2", "--retry", "3", *local], cwd=work.build, env=env)
    if ran.code != 0:
        raise refusal(ran)
    kit.run(["bundle", "clean"], cwd=work.build, env=env, quiet=True)
    _save(work)
    shutil.rmtree(work.build / GEM_CACHE, ignore_errors=True)
    work.profile("ruby.sh", PROFILE)
    kit.export({name: value for name, value in env.items() if name.startswith("BUNDLE_")})


def _check_lock(build: Path) -> None:
    if not (build / "Gemfile.lock").is_file():
        raise AppRefused(
            "ruby-lock-missing",
            "Gemfile has no lock file: there is no Gemfile.lock beside it.",
            why="Without a lock, each build could install other versions.",
            fixes=("Make it with `bundle lock --add-platform x86_64-linux` and commit Gemfile.lock.",),
        )


def bundler_environment(work: Work) -> dict[str, str]:
    """Return Bundler's settings: exactly the lock, into the app, with the stack's own Bundler."""
    mirror = os.environ.get("BUNDLE_MIRROR")
    return {
        "BUNDLE_DEPLOYMENT": "true",
        "BUNDLE_PATH": str(work.build / BUNDLE),
        "BUNDLE_WITHOUT": WITHOUT,
        "BUNDLE_VERSION": "system",
        "BUNDLE_IGNORE_CONFIG": "true",
        "BUNDLE_CACHE_ALL": "false",
        "BUNDLE_SILENCE_ROOT_WARNING": "true",
        "BUNDLE_DISABLE_VERSION_CHECK": "true",
        "GEM_SPEC_CACHE": str(work.cache / "ruby" / "specs"),
        "CFLAGS": "-O2 -g0",
        **({} if mirror is None else {"BUNDLE_MIRROR__ALL": mirror}),
    }


def _restore(work: Work) -> None:
    """Bring the gems of the last build back: native extensions take long to compile."""
    saved = work.cache / "ruby" / "bundle"
    if saved.is_dir():
        shutil.copytree(saved, work.build / BUNDLE, symlinks=True, dirs_exist_ok=True)


def _save(work: Work) -> None:
    saved = work.cache / "ruby" / "bundle"
    shutil.rmtree(saved, ignore_errors=True)
    if (work.build / BUNDLE).is_dir():
        shutil.copytree(work.build / BUNDLE, saved, symlinks=True)


def refusal(ran: Ran) -> AppRefused:
    """Return why Bundler failed."""
    for sign, reason, what, fixes in FAILURES:
        if re.search(sign, ran.text):
            return AppRefused(reason, what, why=ran.why(), fixes=fixes)
    return AppRefused(
        "ruby-install-failed",
        f"`bundle install` failed (exit code {ran.code}).",
        why=ran.why(),
        fixes=("Try the same on your machine: `BUNDLE_DEPLOYMENT=true bundle install`.",),
    )


FAILURES = (
    (
        r"frozen mode|deployment mode|lockfile .* (can't|cannot) be updated|Add these dependencies",
        "ruby-lock-outdated",
        "Gemfile.lock does not fit Gemfile.",
        ("Run `bundle lock` and commit Gemfile.lock.",),
    ),
    (
        r"platforms? .*x86_64-linux|does not support",
        "ruby-platform-missing",
        "Gemfile.lock was made for another platform.",
        ("Run `bundle lock --add-platform x86_64-linux` and commit Gemfile.lock.",),
    ),
    (
        r"Your Ruby version is",
        "ruby-version-not-available",
        "Gemfile asks for a Ruby that the stack does not have.",
        ("Remove the `ruby` line from Gemfile, or ask for the stack's version, and run `bundle lock`.",),
    ),
    (
        r"Failed to build gem native extension",
        "ruby-gem-build-failed",
        "A gem's native extension could not be compiled.",
        ("If a C library is missing, name its Debian package in an Aptfile (libfoo-dev).",),
    ),
    (
        r"Could not reach host|Network error|Could not fetch specs|Connection|SSL_connect|Timeout",
        "ruby-source-unreachable",
        "The source of gems did not answer.",
        (
            "Build again in a minute.",
            "Put the gems into the app: `bundle cache`, and commit vendor/cache.",
            "If it stays so, tell the operator: can builds reach a source of gems?",
        ),
    ),
    (
        r"Could not find",
        "ruby-gem-missing",
        "Gemfile.lock names a gem, or a version of one, that is not there.",
        ("Check the gem's spelling.", "With vendor/cache, run `bundle cache` again and commit it."),
    ),
)
"""What Bundler prints (a regular expression), the reason, the sentence, and what to do; the first that matches counts."""
