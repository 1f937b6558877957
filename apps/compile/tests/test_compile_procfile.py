"""The Procfile's grammar and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from compiler.errors import AppRefused
from compiler.procfile import PROCESS_TYPE, parse_procfile, read_procfile

from blackstart.model import names


def test_each_line_is_a_process_type() -> None:
    text = "# comment\n\nweb:  gunicorn app:app --bind 0.0.0.0:$PORT \nworker: python -c 'print(1)'\r\n"
    assert parse_procfile(text) == {"web": "gunicorn app:app --bind 0.0.0.0:$PORT", "worker": "python -c 'print(1)'"}


def test_the_grammar_of_types_is_the_platform_s() -> None:
    assert PROCESS_TYPE.pattern == names.PROCESS_TYPE.pattern


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        ("web ./run", "Line 1 of the Procfile is not understood: 'web ./run'", "It has no colon."),
        ("web: x\nweb:", "Line 2 of the Procfile is not understood: 'web:'", "It has no command."),
        (
            "\n\nWeb: x",
            "Line 3 of the Procfile is not understood: 'Web: x'",
            "A process type is a lower-case letter, then up to 29 letters, digits, dashes or underscores.",
        ),
    ],
)
def test_a_bad_line_is_named_with_its_number(text: str, what: str, why: str) -> None:
    with pytest.raises(AppRefused) as refused:
        parse_procfile(text)
    assert (refused.value.reason, refused.value.what, refused.value.why) == ("procfile-bad-line", what, why)


def test_a_type_that_is_there_twice_is_refused() -> None:
    with pytest.raises(AppRefused) as refused:
        parse_procfile("web: a\nweb: b")
    assert (refused.value.reason, refused.value.why) == ("procfile-type-twice", "The process type web is there twice.")


@pytest.mark.parametrize("text", ["", "\n \n", "# web: x\n"])
def test_a_procfile_without_processes_is_refused(text: str) -> None:
    with pytest.raises(AppRefused) as refused:
        parse_procfile(text)
    assert (refused.value.reason, refused.value.code) == ("procfile-empty", 1)


def test_no_procfile_is_none(app: Callable[..., Path]) -> None:
    assert read_procfile(app({})) is None


def test_a_byte_order_mark_is_no_part_of_the_first_type(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_bytes(b"\xef\xbb\xbfweb: x\n")
    assert read_procfile(tmp_path) == {"web": "x"}


def test_a_procfile_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_bytes(b"web: \xff\xfe")
    with pytest.raises(AppRefused, match="not UTF-8"):
        read_procfile(tmp_path)
