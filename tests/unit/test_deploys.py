"""A deploy is believed only when pyinfra exits 0 and its JSON names no failed host."""

import json

import pytest

from blackstart.deploys import _result
from blackstart.errors import DeployError


def report(success=(), error=(), failed_hosts=()) -> str:
    operations = [{"name": "Do it", "success": list(success), "error": list(error), "no_change": []}]
    return json.dumps({"results": {"operations": operations, "failed_hosts": list(failed_hosts)}})


def test_what_changed_is_counted_by_host():
    assert _result("stage1", 0, report(success=["node1", "node2"]), []).changed == {"node1": 1, "node2": 1}


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (0, ""),  # Ctrl-C exits 0
        (0, "not JSON"),
        (1, report(success=["node1"])),  # an unreachable host dropped out
        (0, report(error=["node2"])),
        (0, report(failed_hosts=["node2"])),
    ],
)
def test_anything_else_is_a_failure_with_the_last_lines(code, output):
    with pytest.raises(DeployError) as failed:
        _result("stage1", code, output, ["first", "the cause"])
    assert "deploys/stage1.py failed" in failed.value.what
    assert failed.value.why.endswith("the cause")
    assert "run the same command again" in failed.value.fix


def test_the_failed_hosts_are_named():
    with pytest.raises(DeployError, match="failed on node2, node3"):
        _result("stage1", 1, report(error=["node2"], failed_hosts=["node3"]), [])
