"""The configuration's exact text, the environment, and the parsing of HAProxy's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from router import ack, pages, store
from router.config import Paths, Shape, render, render_hosts
from router.plan import Actual, Live, Target, Wanted
from router.runtime import Processes, RuntimeFailed, parse_actual, parse_processes
from router.settings import SettingRefused, Settings, Timeouts, _connections, from_environment
from router.table import EMPTY, App, Table

PATHS = Paths(Path("/run/r"), Path("/state/listeners.sock"))
EXPECTED = Path(__file__).with_name("expected.cfg")


def settings(**changes: object) -> Settings:
    values: dict[str, object] = {
        "node": "n1",
        "bus_url": "",
        "haproxy": Path("haproxy"),
        "state": Path("/state"),
        "ca": Path("/trust/ca.pem"),
        "certificate": "PEM",
        "http_port": 80,
        "https_port": 443,
        "bind": ("0.0.0.0", "::"),
        "threads": 2,
        "max_connections": 8000,
        "timeouts": Timeouts(),
        "least_slots": 2,
        "task": "",
    }
    return Settings(**(values | changes))  # type: ignore[arg-type]


def test_the_configuration_is_exactly_this() -> None:
    want = Wanted(
        {
            "slot-00000": {"abc": Target("10.77.0.11", 32768), "old": Target("10.77.0.12", 32768, drain=True)},
            "slot-00001": {"def:tls": Target("10.77.0.12", 32769, peer="api")},
        }
    )
    assert render(settings(), PATHS, Shape(2, tls=True), want, (3, 0)) == EXPECTED.read_text()


def test_an_older_haproxy_keeps_one_timeout_for_the_whole_answer() -> None:
    text = render(settings(), PATHS, Shape(1, tls=False), Wanted(), (2, 6))
    assert "timeout server 55s" in text
    assert "set-timeout" not in text


def test_without_certificate_state_and_ca_nothing_refers_to_them() -> None:
    text = render(
        settings(certificate="", bind=("127.0.0.1",)),
        Paths(Path("/run/r"), None),
        Shape(1, tls=False),
        Wanted(),
        (3, 0),
    )
    assert "crt" not in text
    assert "stats socket" not in text
    assert "ca-file" not in text
    assert text.count("\n    bind ") == 1


def test_the_map_is_sorted() -> None:
    assert (
        render_hosts({"b.example": "slot-00001", "a.example": "no-web"}) == "a.example no-web\nb.example slot-00001\n"
    )


def test_every_page_names_its_code_in_html_and_plain_text() -> None:
    assert pages.NO_WEB.plain() == (
        "No web dynos running. The app has no running web dyno. Its owner can scale it up. (H14)\n"
    )
    for page in (*pages.NEGOTIATED, *pages.FIXED):
        assert page.code in page.html()
        assert page.code in page.plain()


GOOD = {"NODE": "node-1", "HAPROXY": "/bin/true"}


def test_the_defaults_are_the_public_ports() -> None:
    got = from_environment(GOOD)
    assert (got.http_port, got.https_port, got.timeouts) == (80, 443, Timeouts(30, 55, 25))
    assert got.state == Path("/var/lib/blackstart/router")
    assert got.ca == Path("/etc/blackstart/trust/ca.pem")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NODE": ""}, "NODE is ''"),
        ({"NODE": "a\nb"}, "NODE is"),
        ({"HAPROXY": "/nowhere/haproxy"}, "no program '/nowhere/haproxy' found"),
        ({"HTTP_PORT": "http"}, "HTTP_PORT is 'http'"),
        ({"HTTP_PORT": "70000"}, "whole number from 1 to 65535"),
        ({"TLS_CERT": "x"}, "only one of TLS_CERT and TLS_KEY"),
        ({"ROUTER_STATE": "/" + "long" * 25}, "a path of 101 bytes is too long"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SettingRefused) as caught:
        from_environment(GOOD | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(("files", "connections"), [(20_000, 9_700), (1024, 212), (300, 100)])
def test_connections_follow_the_file_limit(files: int, connections: int) -> None:
    assert _connections(files) == connections


SHOW_PROC = """#<PID>          <type>          <reloads>       <uptime>        <version>
1162            master          5 [failed: 1]   0d00h02m07s     3.0.11
# workers
1271            worker          1               0d00h00m00s     3.0.11
# old workers
1233            worker          3               0d00h00m43s     3.0.11
# programs

"""
STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_port\n"
    "3 slot-00000 1 a 10.0.0.1 2 0 3000\n3 slot-00000 2 b:tls 10.0.0.2 0 0 3001\n3 slot-00000 3 c 10.0.0.3 2 8 3002\n"
    "3 slot-00000 4 d 10.0.0.4 0 1 3003\n4 trust 1 unused 127.0.0.1 0 4 1\n\n"
)
STAT = "# pxname,svname,qcur,scur\nslot-00000,a,1,2\nslot-00000,b:tls,0,0\nslot-00000,c,0,5\nslot-00000,d,0,0\ntrust,unused,0,0\n\n"


def test_show_proc_is_read() -> None:
    assert parse_processes(SHOW_PROC) == Processes(5, 1, (1271,), (1233,))


def test_haproxys_servers_and_hosts_are_read() -> None:
    assert parse_actual(STATE, STAT, "0x7f a.example slot-00000\n\n") == Actual(
        {
            "slot-00000": {
                "a": Live("10.0.0.1", 3000, False, False, "UP", 3),
                "b:tls": Live("10.0.0.2", 3001, False, False, "DOWN", 0),
                "c": Live("10.0.0.3", 3002, False, True, "DRAIN", 5),
                "d": Live("10.0.0.4", 3003, True, False, "MAINT", 0),
            }
        },
        {"a.example": "slot-00000"},
    )


def test_an_answer_that_is_not_understood_is_an_error_not_an_empty_haproxy() -> None:
    with pytest.raises(RuntimeFailed, match="not understood"):
        parse_actual("Can't connect to the target CLI!\n", STAT, "")


def test_a_report_counts_the_sessions_of_finishing_workers() -> None:
    actual = Actual({"slot-00000": {"a": Live("10.0.0.1", 1, sessions=1), "b:tls": Live("10.0.0.1", 2, status="DOWN")}})
    got = ack.report(7, actual, {"a": 2, "gone": 1, "idle": 0})
    assert got.servers == {"a": ("UP", 3), "b": ("DOWN", 0), "gone": ("MAINT", 1)}
    assert ack.parse(got.dump()) == got


def test_two_routers_of_a_node_make_one_report() -> None:
    new = ack.Report(8, {"a": ("UP", 1)})
    slow = ack.Report(7, {"a": ("UP", 0), "b": ("DRAIN", 0)}, error="disk full")
    stopping = ack.Report(3, {"a": ("MAINT", 2), "z": ("MAINT", 1), "idle": ("MAINT", 0)}, stopping=True)
    assert ack.merged([new, stopping]) == ack.Report(8, {"a": ("UP", 3), "z": ("MAINT", 1)})
    assert ack.merged([new, slow]) == ack.Report(7, {"a": ("UP", 1), "b": ("DRAIN", 0)}, error="disk full")
    assert ack.merged([stopping]).stopping


def test_the_disk_holds_the_newest_table_and_no_left_overs(tmp_path: Path) -> None:
    assert store.load(tmp_path) == EMPTY
    for version in (1, 2):
        store.save(tmp_path, Table(version, {"a.example": "shop"}, {"shop": App()}))
    assert store.load(tmp_path).version == 2
    assert [path.name for path in tmp_path.iterdir()] == ["routes.json"]


def test_a_damaged_or_unwritable_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_bytes(b"\xff")
    with pytest.raises(store.StoreFailed, match=r"routes\.json cannot be read"):
        store.load(tmp_path)
    with pytest.raises(store.StoreFailed, match=r"routes\.json cannot be written"):
        store.save(tmp_path / "nowhere", EMPTY)
