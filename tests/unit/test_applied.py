"""What was written but not applied, because a run was killed between both, is applied by the next run: with the real pyinfra."""

import os

import pytest

from blackstart.deploys import run_deploy
from blackstart.sources import checkout_root

DEPLOY = """
from io import StringIO
from pyinfra.operations import files, server
from deploys.lib import applied as stamps

stamps.STAMPS = "{folder}/stamps"
put = files.put(name="Write the setting", src=StringIO("{text}"), dest="{folder}/setting")
stamp = stamps.applied("service", ("{folder}/setting",))
server.shell(
    name="Restart the service",
    commands=["cat {folder}/setting >> {folder}/log", "{then}", stamp.command],
    _if=[stamp.due([put])],
)
"""


@pytest.fixture
def deploy(tmp_path):
    """Run the deploy with a setting; return how many operations changed something."""

    def run(text: str, *, then: str = "true") -> int:
        (tmp_path / "setting.py").write_text(DEPLOY.format(folder=tmp_path, text=text, then=then))
        path = os.path.relpath(tmp_path / "setting", checkout_root() / "deploys")
        return sum(run_deploy("@local", path, log=print).changed.values())

    return run


def log(tmp_path) -> str:
    return (tmp_path / "log").read_text()


def test_a_setting_is_applied_once_and_again_when_it_changes(deploy, tmp_path):
    assert deploy("a") == 2
    assert deploy("a") == 0
    assert log(tmp_path) == "a"
    assert deploy("b") == 2
    assert log(tmp_path) == "ab"


def test_a_setting_that_was_written_and_not_applied_is_applied_by_the_next_run(deploy, tmp_path):
    with pytest.raises(Exception, match="failed"):
        deploy("a", then="false")  # it ended before the stamp was set
    assert log(tmp_path) == "a"
    assert deploy("a") == 1
    assert log(tmp_path) == "aa"
    assert deploy("a") == 0
