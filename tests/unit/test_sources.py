"""The same files give the same tarball, whatever their owner, age and order."""

import io
import os
import tarfile

from blackstart.sources import checkout_root, component_names, component_source, folder_source, read_component


def test_a_source_does_not_depend_on_times_owners_and_umask(tmp_path):
    digests = []
    for number, umask in enumerate((0o022, 0o077)):
        folder = tmp_path / str(number)
        folder.mkdir()
        before = os.umask(umask)
        try:
            for name in sorted(("b.py", "a.py"), reverse=bool(number)):
                (folder / name).write_text("x = 1\n")
        finally:
            os.umask(before)
        os.utime(folder / "a.py", (number, number))
        digests.append(folder_source(folder).sha256)
    assert digests[0] == digests[1]


def test_a_source_leaves_out_what_is_not_source(tmp_path):
    for name in (".git/config", "node_modules/x/index.js", "__pycache__/a.pyc", "app.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with tarfile.open(fileobj=io.BytesIO(folder_source(tmp_path).data)) as tar:
        assert tar.getnames() == ["app.py"]


def test_a_component_carries_its_library_and_not_its_tests():
    with tarfile.open(fileobj=io.BytesIO(component_source(checkout_root(), "api").data)) as tar:
        names = tar.getnames()
    assert "blackstart/model/tables.py" in names
    assert "blackstart/__init__.py" in names
    assert not [name for name in names if name.startswith("tests/") or name == "blackstart/cli.py"]


def test_every_component_is_described():
    names = component_names(checkout_root())
    assert set(names) >= {"api", "psmgr", "compile", "router", "postgres", "objects", "bus"}
    for name in names:
        assert read_component(checkout_root(), name).name == name
