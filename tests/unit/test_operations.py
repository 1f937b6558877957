"""What pyinfra prints becomes: which operation ran on which host, when."""

import datetime

from blackstart.deploys import run_deploy
from blackstart.operations import READING, OperationReader

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LOG = """\
--> Connecting to hosts...
    [node1] Connected
--> Preparing operation files...
    Loading: deploys/stage1.py
    [node1]  Ready: deploys/stage1.py
    [node10] Ready: deploys/stage1.py
--> Beginning operation run...
--> Starting operation: Node | Base | Make /etc/blackstart
    [node1]  No changes
    [node10] Success
--> Starting serial operation: Join the engine (token)
    [node1]  Skipped
    [node10] Error: executed 1 commands
--> Results:
"""


def test_each_operation_is_known_by_host_time_and_result():
    reader = OperationReader("stage1")
    seen = [
        reader.read(line, START + datetime.timedelta(seconds=second)) for second, line in enumerate(LOG.splitlines())
    ]
    told = [(each.host, each.name, each.seconds, each.result) for each in seen if each is not None]
    assert told == [
        ("node1", READING, 2, "read"),
        ("node10", READING, 3, "read"),
        ("node1", "Node | Base | Make /etc/blackstart", 1, "was so"),
        ("node10", "Node | Base | Make /etc/blackstart", 2, "changed"),
        ("node1", "Join the engine (token)", 1, "skipped"),
        ("node10", "Join the engine (token)", 2, "failed"),
    ]
    assert {each.deploy for each in seen if each is not None} == {"stage1"}


def test_a_real_deploy_gives_its_operations_while_it_works(tmp_path, monkeypatch):
    (tmp_path / "deploys").mkdir()
    (tmp_path / "deploys" / "two.py").write_text(
        "from pyinfra.operations import files, server\n"
        f"files.directory(name='Make a folder', path={str(tmp_path / 'there')!r})\n"
        f"files.directory(name='Make no folder', path={str(tmp_path)!r})\n"
    )
    monkeypatch.setattr("blackstart.deploys.checkout_root", lambda: tmp_path)
    seen = []
    run_deploy("@local", "two", log=lambda text: None, on_operation=seen.append)
    assert [(each.host, each.name, each.result) for each in seen] == [
        ("@local", READING, "read"),
        ("@local", "Make a folder", "changed"),
        ("@local", "Make no folder", "was so"),
    ]
    assert all(datetime.datetime.fromisoformat(each.started_at).tzinfo is not None for each in seen)
