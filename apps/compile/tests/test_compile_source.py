"""Sources: what a stranger's tarball may do, and what a clean copy holds."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from compiler import limits, source
from compiler.errors import SourceRefused

Make = Callable[..., Path]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def unpacked(tarball: Path, tmp_path: Path) -> list[str]:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    source.unpack(tarball, folder)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_a_tarball_of_each_compression_is_unpacked(tarball: Make, tmp_path: Path, mode: str) -> None:
    assert unpacked(tarball({"Procfile": "web: x", "lib/a.py": ""}, mode=mode), tmp_path) == ["Procfile", "lib/a.py"]


def test_the_one_top_folder_of_a_repository_s_tarball_is_stripped(tarball: Make, tmp_path: Path) -> None:
    made = tarball({"shop-1a2b3c/Procfile": "web: x", "shop-1a2b3c/lib/a.py": ""})
    assert unpacked(made, tmp_path) == ["Procfile", "lib/a.py"]


def test_dot_slash_names_are_unpacked_at_the_top(tarball: Make, tmp_path: Path) -> None:
    assert unpacked(tarball({"./Procfile": "web: x", "./lib/a.py": ""}), tmp_path) == ["Procfile", "lib/a.py"]


def test_a_lone_public_folder_is_a_site_s_and_stays(tarball: Make, tmp_path: Path) -> None:
    assert unpacked(tarball({"public/index.html": "x"}), tmp_path) == ["public/index.html"]


def test_a_lone_file_is_no_folder_to_strip(tarball: Make, tmp_path: Path) -> None:
    assert unpacked(tarball({"Procfile": "web: x"}), tmp_path) == ["Procfile"]


def test_history_and_installed_packages_are_left_out(tarball: Make, tmp_path: Path) -> None:
    files = dict.fromkeys(
        [
            ".git/config",
            "node_modules/x/a.js",
            "web/node_modules/y.js",
            "vendor/bundle/z.rb",
            ".venv/bin/python",
            ".bundle/config",
        ],
        "",
    )
    kept = dict.fromkeys(["Procfile", "vendor/cache/a.gem", "vendor/bundler.rb", ".gitignore", "docs/.venvy"], "")
    assert unpacked(tarball({**files, **kept}), tmp_path) == sorted(kept)


def test_links_inside_the_source_are_kept(tarball: Make, tmp_path: Path) -> None:
    links = [member("lib/latest", tarfile.SYMTYPE, "a.py"), member("copy.py", tarfile.LNKTYPE, "lib/a.py")]
    assert unpacked(tarball({"lib/a.py": "1"}, members=links), tmp_path) == ["copy.py", "lib/a.py", "lib/latest"]
    assert (tmp_path / "unpacked/lib/latest").readlink() == Path("a.py")
    assert (tmp_path / "unpacked/copy.py").read_text() == "1"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("../x"), "Its name climbs out with ..."),
        (member("a/../../x"), "Its name climbs out with ..."),
        (member("/etc/cron.d/x"), "Its name is absolute."),
        (member("x", tarfile.SYMTYPE, "/etc/passwd"), "It links to the absolute path /etc/passwd."),
        (member("a/x", tarfile.SYMTYPE, "../../etc"), "It links out of the source, to ../../etc."),
        (member("x", tarfile.LNKTYPE, "../../etc/passwd"), "It links out of the source, to ../../etc/passwd."),
        (member("x", tarfile.LNKTYPE, "/etc/passwd"), "It links to the absolute path /etc/passwd."),
        (member("x", tarfile.FIFOTYPE), "It is a device, a pipe or of an unknown type."),
        (member("x", tarfile.CHRTYPE), "It is a device, a pipe or of an unknown type."),
    ],
)
def test_a_member_that_climbs_out_is_refused_and_named(
    tarball: Make, tmp_path: Path, bad: tarfile.TarInfo, why: str
) -> None:
    with pytest.raises(SourceRefused) as refused:
        unpacked(tarball({"Procfile": "web: x"}, members=[bad]), tmp_path)
    assert (refused.value.reason, refused.value.why, refused.value.code) == ("source-unsafe-member", why, 2)
    assert refused.value.what == f"The source has a file that may not be unpacked: {bad.name!r}."
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_a_file_below_a_link_is_refused(tarball: Make, tmp_path: Path) -> None:
    trick = [member("inside", tarfile.SYMTYPE, "."), member("inside/x", tarfile.SYMTYPE, "..")]
    with pytest.raises(SourceRefused, match="may not be unpacked: 'inside/x'"):
        unpacked(tarball({"Procfile": "web: x"}, members=trick), tmp_path)


def test_a_link_that_climbs_out_once_the_top_folder_is_gone_is_refused(tarball: Make, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused) as refused:
        unpacked(tarball({"shop/a": ""}, members=[member("shop/b/c", tarfile.SYMTYPE, "../../shop/a")]), tmp_path)
    assert refused.value.reason == "source-unsafe-member"


@pytest.mark.parametrize(
    "contents", [b"", b"hello", b"<html>not here</html>" * 100, b"\x1f\x8b\x08garbage", os.urandom(4096)]
)
def test_what_is_no_tarball_is_refused(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "source"
    path.write_bytes(contents)
    with pytest.raises(SourceRefused) as refused:
        source.unpack(path, tmp_path)
    assert refused.value.reason in ("source-not-a-tarball", "source-empty")


def test_a_zip_is_refused_with_what_to_send_instead(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "source", "w") as archive:
        archive.writestr("Procfile", "web: x")
    with pytest.raises(SourceRefused) as refused:
        source.unpack(tmp_path / "source", tmp_path)
    assert refused.value.reason == "source-not-a-tarball"
    assert refused.value.fixes == (
        "Make the tarball with `git archive --format=tar.gz HEAD`, or `tar czf source.tgz .` in the app's folder.",
        "A tar may be plain, or compressed with gzip, xz or bzip2. A zip is not a tarball.",
    )


def test_a_tarball_cut_short_is_refused(tarball: Make, tmp_path: Path) -> None:
    made = tarball({"Procfile": "web: x", "data": "0123456789" * 5000})
    made.write_bytes(made.read_bytes()[:-20])
    with pytest.raises(SourceRefused, match="not a tarball, or it is damaged"):
        unpacked(made, tmp_path)


def test_an_empty_tarball_is_refused(tarball: Make, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="The source has no files"):
        unpacked(tarball({}), tmp_path)


def test_a_decompression_bomb_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SOURCE_UNPACKED", 1_000_000)
    header = member("zeros", size=50_000_000).tobuf()
    (tmp_path / "source").write_bytes(gzip.compress(header + bytes(50_000_000)))
    with pytest.raises(SourceRefused) as refused:
        unpacked(tmp_path / "source", tmp_path)
    assert (refused.value.reason, refused.value.why) == ("source-too-large", "It unpacks to more than 1 MB.")
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_a_bomb_in_a_header_is_not_read_into_memory(tmp_path: Path) -> None:
    header = member("x", tarfile.GNUTYPE_LONGNAME, size=1 << 30).tobuf()
    (tmp_path / "source").write_bytes(gzip.compress(header + bytes(20_000_000)))
    with pytest.raises(SourceRefused) as refused:
        unpacked(tmp_path / "source", tmp_path)
    assert refused.value.why == "A header of a member is too large."


def test_too_many_files_are_refused(tarball: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCE_MEMBERS", 3)
    with pytest.raises(SourceRefused) as refused:
        unpacked(tarball(dict.fromkeys("abcd", "")), tmp_path)
    assert refused.value.why == "It holds more than 3 files."


def test_a_set_uid_bit_is_dropped(tarball: Make, tmp_path: Path) -> None:
    entry = member("tool")
    entry.mode = 0o6755
    unpacked(tarball({"Procfile": "web: x"}, members=[entry]), tmp_path)
    assert (tmp_path / "unpacked/tool").stat().st_mode & 0o7777 == 0o755


def test_a_folder_is_copied_clean(app: Make, tmp_path: Path) -> None:
    folder = app(
        {"Procfile": "web: x", ".git/HEAD": "", "node_modules/a.js": "", "bin/run": "#!/bin/sh", "vendor/bundle/a": ""}
    )
    (folder / "bin/run").chmod(0o700)
    (folder / "link").symlink_to("bin/run")
    to = tmp_path / "copy"
    to.mkdir()
    assert source.copy_folder(folder, to) == 2
    assert sorted(path.relative_to(to).as_posix() for path in to.rglob("*")) == [
        "Procfile",
        "bin",
        "bin/run",
        "link",
        "vendor",
    ]
    assert (to / "bin/run").stat().st_mode & 0o777 == 0o755
