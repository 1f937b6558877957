"""The `apt` buildpack: the Debian packages that an Aptfile lists, unpacked into /app/.apt.

apt-get runs as an ordinary user with folders of its own. Packages that the run stack has already are not fetched:
apt is shown the run stack's list of packages, not the build stack's. Packages are unpacked, not installed: no
postinst runs, so nothing that one would make (a user, an alternative, a cache) is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler import kit, output
from compiler.errors import AppRefused
from compiler.kit import Ran, Work

APT = ".apt"
RUN_STACK_STATUS = Path("/usr/lib/blackstart/run-stack.dpkg-status")
"""dpkg's status of the run stack, kept in the build stack; without it the build stack's own list is taken."""
DPKG_STATUS = Path("/var/lib/dpkg/status")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
NAME = r"[a-z0-9][a-z0-9+.-]+"
PACKAGE = re.compile(NAME + r"(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?")
LEFT_OUT = re.compile(f"!({NAME})")
USELESS = ("doc", "man", "info", "lintian", "bug", "doc-base", "locale")
"""Folders of /usr/share that no program needs."""
PROGRAMS = ("usr/bin", "usr/sbin", "bin", "sbin")


@dataclass(frozen=True)
class Aptfile:
    """What an app wants: packages, and among what these need, the packages that it wants left out."""

    packages: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def compile(arguments: list[str]) -> int:
    """Fetch and unpack the packages."""
    return kit.compiling(arguments, _compile)


def release(_: list[str]) -> int:
    """Give no process types."""
    return kit.released({})


def _compile(work: Work) -> None:
    wanted = parse_aptfile((work.build / "Aptfile").read_text(errors="replace"))
    packages = list(wanted.packages)
    env = {"APT_CONFIG": str(_configure(work, wanted.left_out)), "DEBIAN_FRONTEND": "noninteractive"}
    output.step("Reading Debian's package lists")
    updated = kit.run(["apt-get", "update", "--quiet=2", "--error-on=any"], cwd=work.build, env=env)
    if updated.code != 0:
        raise refusal(updated)
    output.step(f"Fetching Debian packages: {', '.join(packages)}")
    if wanted.left_out:
        output.detail(f"Left out: {', '.join(wanted.left_out)}")
    fetched = _fetch(packages, work, env)
    if not fetched:
        output.detail("The stack has them all already.")
    _unpack(fetched, work)
    work.profile("apt.sh", profile())
    kit.export(variables(work.build / APT))


def parse_aptfile(text: str) -> Aptfile:
    """Return what an Aptfile says, one package a line: `name` or `name=version`; `!name` is left out."""
    packages, left_out = [], []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#")[0].strip()
        if not line:
            continue
        unwanted = LEFT_OUT.fullmatch(line)
        if unwanted:
            left_out.append(unwanted[1])
            continue
        if not PACKAGE.fullmatch(line):
            raise AppRefused(
                "apt-bad-line",
                f"Line {number} of the Aptfile is not a Debian package: {line[:120]!r}",
                why="Addresses of .deb files and `:repo:` lines are not supported.",
                fixes=("Write one package a line, as `libvips42` or `libvips42=8.16.1-1+b1`.",),
            )
        packages.append(line)
    if not packages:
        raise AppRefused("apt-empty", "The Aptfile names no packages.", fixes=("Name some, or remove the Aptfile.",))
    both = sorted({re.split("[:=]", package)[0] for package in packages} & set(left_out))
    if both:
        raise AppRefused(
            "apt-left-out-and-named",
            f"The Aptfile names a package and leaves it out: {', '.join(both)}",
            fixes=("Remove one of the two lines.",),
        )
    return Aptfile(tuple(packages), tuple(left_out))


def _configure(work: Work, left_out: Sequence[str]) -> Path:
    """Write apt's configuration for this build and return its path."""
    state, cache = work.cache / "apt" / "state", work.cache / "apt" / "cache"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(os.environ["TMPDIR"])
    lines = apt_configuration(state, cache, _status(scratch, left_out))
    source = os.environ.get("APT_SOURCE")
    if source:
        (scratch / "apt-sources").write_text(f"deb [signed-by={KEYRING}] {source} {_codename()} main\n")
        lines += ['Dir::Etc::SourceParts "/dev/null";', f'Dir::Etc::SourceList "{scratch}/apt-sources";']
    path = scratch / "apt.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


def _status(scratch: Path, left_out: Sequence[str]) -> Path:
    """Return dpkg's status of what dynos have; what is left out is in it too, in a version that satisfies all."""
    status = RUN_STACK_STATUS if RUN_STACK_STATUS.is_file() else DPKG_STATUS
    if not left_out:
        return status
    asked = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True)
    entries = [
        f"Package: {package}\nStatus: install ok installed\nArchitecture: {asked.stdout.strip()}\nMulti-Arch: allowed\n"
        "Version: 9999:0\nMaintainer: nobody\nDescription: left out\n"
        for package in left_out
    ]
    longer = scratch / "apt-status"
    longer.write_text("\n".join([status.read_text(errors="replace").rstrip("\n") + "\n", *entries]))
    return longer


def apt_configuration(state: Path, cache: Path, status: Path) -> list[str]:
    """Return apt's configuration: folders of our own, `status` of dpkg, no recommended packages, no translations."""
    roots = os.environ.get("SSL_CERT_FILE")
    return [
        f'Dir::State "{state}/";',
        f'Dir::State::status "{status}";',
        f'Dir::Cache "{cache}/";',
        'Debug::NoLocking "true";',
        'APT::Install-Recommends "false";',
        'APT::Get::Assume-Yes "true";',
        'APT::Sandbox::User "";',
        'Acquire::Languages "none";',
        'Acquire::GzipIndexes "true";',
        'Acquire::Retries "3";',
        *([f'Acquire::https::CaInfo "{roots}";'] if roots else []),
    ]


def _codename() -> str:
    release = Path("/etc/os-release").read_text()
    match = re.search(r"^VERSION_CODENAME=(\w+)", release, re.M)
    return "stable" if match is None else match[1]


def _fetch(packages: list[str], work: Work, env: dict[str, str]) -> list[Path]:
    """Fetch the packages with what they need beyond the stack; return the files, sorted."""
    nothing = Path(os.environ["TMPDIR"]) / "no-archives"
    (nothing / "partial").mkdir(parents=True, exist_ok=True)
    # apt lists only what it has to fetch: with the cache's archives in sight, nothing of what they hold
    argv = ["apt-get", "install", "--quiet=2", "--print-uris", f"-oDir::Cache::archives={nothing}/", "--", *packages]
    listed = kit.run(argv, cwd=work.build, env=env, quiet=True, keep=10_000)
    if listed.code != 0:
        raise refusal(listed)
    names = sorted(re.findall(r"^'[^']+' (\S+\.deb) \d+", listed.text, re.M))
    for name in names:
        output.detail(" ".join(name.removesuffix(".deb").replace("%3a", ":").split("_")[:2]))
    ran = kit.run(["apt-get", "install", "--quiet=2", "--download-only", "--", *packages], cwd=work.build, env=env)
    if ran.code != 0:
        raise refusal(ran)
    archives = work.cache / "apt" / "cache" / "archives"
    _tidy(work.cache / "apt" / "cache", names)
    return [archives / name for name in names]


def _tidy(cache: Path, names: list[str]) -> None:
    """Keep only the archives of this build, and not apt's own index of the lists, which it makes again in a second."""
    for path in (*cache.glob("*.bin"), *(cache / "archives").glob("*.deb")):
        if path.name not in names:
            path.unlink()


def _unpack(files: list[Path], work: Work) -> None:
    folder = work.build / APT
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in files:
        ran = kit.run(["dpkg-deb", "--extract", str(path), str(folder)], cwd=work.build)
        if ran.code != 0:
            raise AppRefused(
                "apt-unpack-failed", f"The Debian package {path.name} could not be unpacked.", why=ran.why()
            )
    for name in USELESS:
        shutil.rmtree(folder / "usr" / "share" / name, ignore_errors=True)
    relink(folder)


def relink(folder: Path) -> None:
    """Make links to absolute paths that lie in `folder` relative: /usr/lib/x is /app/.apt/usr/lib/x here."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.readlink().is_absolute():
            target = folder / path.readlink().relative_to("/")
            if target.exists() or target.is_symlink():
                relative = os.path.relpath(target, path.parent)
                path.unlink()
                path.symlink_to(relative)


def library_folders() -> list[str]:
    """Return where Debian's packages have their libraries."""
    triplet = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    return [f"usr/lib/{triplet}", "usr/lib", f"lib/{triplet}", "lib"]


def variables(root: Path | str) -> dict[str, str]:
    """Return what makes programs, libraries and headers in `root` found, as shell words."""
    triplet = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    libraries = ":".join(f"{root}/{folder}" for folder in library_folders())
    headers = f"{root}/usr/include:{root}/usr/include/{triplet}"
    return {
        "PATH": ":".join(f"{root}/{folder}" for folder in PROGRAMS) + ":$PATH",
        "LD_LIBRARY_PATH": libraries + "${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}",
        "LIBRARY_PATH": libraries + "${LIBRARY_PATH:+:$LIBRARY_PATH}",
        "CPATH": headers + "${CPATH:+:$CPATH}",
        "PKG_CONFIG_SYSROOT_DIR": str(root),
        "PKG_CONFIG_PATH": f"{root}/usr/lib/{triplet}/pkgconfig:{root}/usr/share/pkgconfig${{PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}}",
    }


def profile() -> str:
    """Return the .profile.d script: what a dyno needs of `variables`."""
    running = variables("$HOME/.apt")
    return "".join(f'export {name}="{running[name]}"\n' for name in ("PATH", "LD_LIBRARY_PATH"))


def refusal(ran: Ran) -> AppRefused:
    """Return why apt-get failed."""
    for sign, reason, what, fixes in FAILURES:
        match = re.search(sign, ran.text)
        if match is not None:
            name = next((group for group in match.groups() if group), "")
            return AppRefused(reason, what.format(name=name), why=ran.why(6), fixes=fixes)
    return AppRefused("apt-failed", f"apt-get failed (exit code {ran.code}).", why=ran.why())


FAILURES = (
    (
        r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation candidate",
        "apt-package-missing",
        "The Aptfile names a package that Debian does not have: {name}",
        ("Check its spelling with `apt-cache search` on Debian 13.",),
    ),
    (
        r"Version '([^']+)' for '[^']+' was not found",
        "apt-version-missing",
        "The Aptfile asks for a version that Debian does not have (any more): {name}",
        ("Leave the version out, or ask for the one that `apt-cache policy` shows on Debian 13.",),
    ),
    (
        r"unmet dependencies|held broken packages",
        "apt-conflict",
        "The packages in the Aptfile do not fit together, or not to the stack.",
        ("Read above which package needs what.",),
    ),
    (
        r"Failed to fetch|Could not (resolve|connect)|Temporary failure|Connection failed|not signed",
        "apt-source-unreachable",
        "The source of Debian packages did not answer.",
        ("Build again in a minute.", "If it stays so, tell the operator: can builds reach a Debian mirror?"),
    ),
)
"""What apt-get prints (a regular expression), the reason, the sentence, and what to do; the first that matches counts."""
