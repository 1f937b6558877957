"""What the tests need on this host beside deploys/host.py: `pyinfra @local deploys/host_tests.py`."""

from pyinfra.operations import apt

from blackstart.host import TEST_PACKAGES

apt.packages(
    name="Install what the tests run for real",
    packages=TEST_PACKAGES,
    no_recommends=True,
    _env={"DEBIAN_FRONTEND": "noninteractive"},
)
