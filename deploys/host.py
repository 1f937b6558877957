"""What the operator's own host needs: `pyinfra @local deploys/host.py`; `bootstrap.py` runs it first."""

from pyinfra.operations import apt

from blackstart.host import HOST_PACKAGES

apt.packages(
    name="Install what makes machines and stacks",
    packages=HOST_PACKAGES,
    update=True,
    cache_time=86400,
    no_recommends=True,
    _env={"DEBIAN_FRONTEND": "noninteractive"},
)
