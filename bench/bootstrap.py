"""`up` with warm caches against its floor, measured in the same run.

    .venv/bin/python bench/bootstrap.py [--svg FILE] [--warm]

The floor is what no bootstrap of these machines can avoid, each measured alone on a machine of its own: boot four
machines, install the engine on one, load both stacks on one, install the components' libraries with bare `uv pip install`
and pack them with bare `mksquashfs`. Prints each step's seconds, the floor's parts, the ratio; draws the timeline.
The steps `fence` and `certificate` prove rather than bootstrap, and wait by their nature (30 s without a packet, a reboot
of every node), so the aims are for the other steps; the whole is printed beside them.
Exit 1 when those took more than 150 s or more than 1.5 times the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from blackstart.inventory import load_inventory  # noqa: E402
from blackstart.platform import Platform  # noqa: E402
from blackstart.providers import Machine  # noqa: E402
from blackstart.providers.options import local_platform, remember_options  # noqa: E402
from blackstart.remote import Remote, connected  # noqa: E402
from blackstart.sources import component_names  # noqa: E402
from blackstart.state import State  # noqa: E402

AIM_SECONDS = 150.0
AIM_RATIO = 1.5
UP_SECONDS = 1500
PROVING = ("fence", "certificate")


def main() -> int:
    """Measure floor and `up`; print; return 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path, help="draw the timeline into this file")
    parser.add_argument("--warm", action="store_true", help="the caches are warm: do not fill them by a first run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BLACKSTART_STATE"] = folder
        if not options.warm:
            _up("warm", "10.79.8.0/24", folder, "--until", "stage-1")
        floor = measured_floor("floor", "10.79.9.0/24")
        status = _up("bench", "10.79.8.0/24", folder)
    whole, bare = float(status["elapsed_s"]), sum(floor.values())
    seconds = whole - sum(step["seconds"] for step in status["steps"] if step["name"] in PROVING)
    for step in status["steps"]:
        print(f"up     {step['name']:12} {step['seconds']:7.1f} s")
    for name, part in floor.items():
        print(f"floor  {name:12} {part:7.1f} s")
    print(f"up {whole:.1f} s, of them proofs {whole - seconds:.1f} s; floor {bare:.1f} s")
    print(
        f"without {', '.join(PROVING)}: {seconds:.1f} s, ratio {seconds / bare:.2f} (aim: {AIM_SECONDS:.0f} s, {AIM_RATIO})"
    )
    if options.svg is not None:
        options.svg.write_text(timeline(status["steps"], floor))
    return 0 if seconds <= AIM_SECONDS and seconds / bare <= AIM_RATIO else 1


def _up(name: str, subnet: str, state: str, *more: str) -> dict:
    environment = {**os.environ, "BLACKSTART_STATE": state}
    common = ["--platform", name, "--json"]
    try:
        argv = [sys.executable, "-m", "blackstart", "up", "--subnet", subnet, *more, *common]
        done = subprocess.run(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=UP_SECONDS)
        if done.returncode != 0:
            sys.exit(f"up failed with exit code {done.returncode}")
        return json.loads(done.stdout)
    finally:
        argv = [sys.executable, "-m", "blackstart", "down", *common]
        subprocess.run(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, timeout=300)


def measured_floor(name: str, subnet: str) -> dict[str, float]:
    """Return the seconds of each part of the floor."""
    os.environ["BLACKSTART_PLATFORM"] = name
    state = State.of(name)
    remember_options(state, nodes=3, subnet=subnet)
    provider = local_platform(state)
    platform = Platform(load_inventory(ROOT / "inventories" / "local.py"), state)
    parts: dict[str, float] = {}

    def measure(part: str, action: Callable[[], object]) -> None:
        started = time.monotonic()
        action()
        parts[part] = time.monotonic() - started

    def boot_one(machine: Machine) -> None:
        provider.create(machine)
        provider.boot(machine)

    def boot() -> None:
        provider.prepare()
        with ThreadPoolExecutor(max_workers=4) as pool:  # as `up` does
            for _ in pool.map(boot_one, provider.machines()):
                pass

    try:
        measure("boot", boot)
        with connected(platform.inventory.nodes[0]) as remote:
            measure("engine", lambda: _install_engine(remote))
            measure("stacks", lambda: _load_stacks(remote, platform))
        with tempfile.TemporaryDirectory() as folder:
            measure("libraries", lambda: _install_libraries(Path(folder)))
            measure("mksquashfs", lambda: _pack(Path(folder)))
    finally:
        provider.down()
        state.remove()
    return parts


def _install_engine(remote: Remote) -> None:
    remote.check(
        ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "-y", "docker.io", "docker-cli"],
        seconds=600,
    )
    cgroups = "for c in /sys/fs/cgroup/*/; do mount -o remount,rw,bind $c || true; done; systemctl restart docker"
    remote.check(["sh", "-c", cgroups], seconds=120)


def _load_stacks(remote: Remote, platform: Platform) -> None:
    for stack in (platform.stacks.run, platform.stacks.build):
        for command in stack.load_commands(stack.path_on_machine):
            remote.check(["sh", "-c", command], seconds=600)


def _install_libraries(folder: Path) -> None:
    from uv import find_uv_bin

    for name in component_names(ROOT):
        requirements = ROOT / "apps" / name / "requirements.txt"
        if requirements.exists():
            subprocess.run([find_uv_bin(), "venv", "-q", str(folder / name)], check=True, timeout=60)
            argv = [find_uv_bin(), "pip", "install", "-q", "--python", str(folder / name / "bin" / "python")]
            subprocess.run([*argv, "-r", str(requirements)], check=True, timeout=600)


def _pack(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        argv = ["mksquashfs", str(path), f"{path}.squashfs", "-quiet", "-no-progress", "-comp", "zstd"]
        subprocess.run(argv, check=True, timeout=300, stdout=subprocess.DEVNULL)


def timeline(steps: list[dict], floor: dict[str, float]) -> str:
    """Return an SVG with a bar per step, and the floor's parts below."""
    rows = [("up", steps), ("floor", [{"name": name, "seconds": part} for name, part in floor.items()])]
    longest = max(sum(step["seconds"] for step in row) for _, row in rows) or 1.0
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="130" font-family="sans-serif" font-size="11">']
    for place, (title, row) in enumerate(rows):
        x, y = 60.0, 20 + 50 * place
        out.append(f'<text x="5" y="{y + 18}">{title}</text>')
        for number, step in enumerate(step for step in row if step["seconds"]):
            width = 920 * step["seconds"] / longest
            colour = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#9d755d")[number % 5]
            label = f"{step['name']} {step['seconds']:.0f} s"
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="26" fill="{colour}"><title>{label}</title></rect>'
            )
            if width > 7 * len(label):
                out.append(f'<text x="{x + 4:.1f}" y="{y + 17}" fill="white">{label}</text>')
            x += width
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
