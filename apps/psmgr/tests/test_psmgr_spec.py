"""Services as text: exact, deterministic, nothing in them that expires."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psmgr import spec
from psmgr.engine import Mount, Port, ServiceSpec, Task
from psmgr.settings import SettingRefused, settings_from
from psmgr.swarm import node_from, service_body, task_from, unix_time

from blackstart.model.component import Component, parse_component

ENV = {
    "PLATFORM": "tst",
    "DOMAIN": "tst.internal",
    "DATABASE_URL": "postgresql+psycopg://u:p@postgres/platform",
    "BUS_URL": "rediss://:p@bus:6379/0",
    "OBJECTS_URL": "https://objects:8333",
    "OBJECTS_PUBLIC_URL": "https://objects.tst.internal",
    "OBJECTS_KEY": "key",
    "OBJECTS_SECRET": "secret",
    "SECRET_KEY": "c2VjcmV0",
    "STACK": "127.0.0.1:1/stack-debian-13:" + "a" * 64,
    "STACK_BUILD": "127.0.0.1:1/stack-debian-13-build:" + "b" * 64,
    "NODE_ADDRESSES": "10.0.0.1, 10.0.0.2",
}
SETTINGS = settings_from(ENV)
APP_ID = "00000000-0000-0000-0000-000000000001"


def process(component: str | None = None, **more: object) -> ServiceSpec:
    described: Component | None = None if component is None else parse_component(component)
    values: dict[str, object] = {
        "app": "shop",
        "app_id": APP_ID,
        "component": described,
        "process_type": "web",
        "command": "gunicorn app:app",
        "version": 7,
        "slug": "c" * 64,
        "stack": ENV["STACK"],
        "quantity": 2,
        "size": "standard-1X",
        "config": {"COLOUR": "blue"},
    }
    return spec.process_spec(SETTINGS, **(values | more))  # type: ignore[arg-type]


def component(lines: str, name: str = "shop") -> str:
    return f'[component]\nname = "{name}"\n[processes.web]\n{lines}'


def test_the_service_of_an_app_as_the_engine_gets_it() -> None:
    bundle = "/etc/blackstart/trust/ca-bundle.pem"
    labels = {
        "blackstart.app": "shop",
        "blackstart.app_id": APP_ID,
        "blackstart.kind": "process",
        "blackstart.platform": "tst",
        "blackstart.process": "web",
        "blackstart.slug": "c" * 64,
        "blackstart.version": "7",
    }
    assert service_body(process()) == {
        "Name": "tst_shop_web_v7",
        "Labels": labels,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "127.0.0.1:1/stack-debian-13:" + "a" * 64,
                "Command": ["tini", "-g", "--", "/usr/lib/blackstart/dyno", "start", "gunicorn app:app"],
                "Env": [
                    f"AWS_CA_BUNDLE={bundle}",
                    "BLACKSTART_SLUG=" + "c" * 64,
                    "COLOUR=blue",
                    f"CURL_CA_BUNDLE={bundle}",
                    "DYNO=web.{{.Task.Slot}}",
                    "NODE={{.Node.Hostname}}",
                    f"NODE_EXTRA_CA_CERTS={bundle}",
                    f"PIP_CERT={bundle}",
                    "PORT=5000",
                    f"REQUESTS_CA_BUNDLE={bundle}",
                    f"SSL_CERT_FILE={bundle}",
                ],
                "Labels": labels,
                "Mounts": [
                    {"Type": "bind", "Source": "/var/lib/blackstart/slugs", "Target": "/slugs", "ReadOnly": True},
                    {
                        "Type": "bind",
                        "Source": "/etc/blackstart/trust",
                        "Target": "/etc/blackstart/trust",
                        "ReadOnly": True,
                    },
                ],
                "StopGracePeriod": 30_000_000_000,
                "CapabilityDrop": ["ALL"],
                "CapabilityAdd": [f"CAP_{name}" for name in spec.CAPABILITIES],
                "Init": False,
            },
            "Resources": {
                "Limits": {"MemoryBytes": 512 << 20, "NanoCPUs": 1_000_000_000, "Pids": 256},
                "Reservations": {"MemoryBytes": 0},
            },
            "RestartPolicy": {"Condition": "any", "Delay": 2_000_000_000},
            "Placement": {"Constraints": ["node.labels.blackstart.cordoned!=true"]},
            "LogDriver": {"Name": "local", "Options": {"max-size": "5m", "max-file": "2"}},
        },
        "Mode": {"Replicated": {"Replicas": 2}},
        "EndpointSpec": {
            "Mode": "dnsrr",
            "Ports": [{"Protocol": "tcp", "PublishMode": "host", "TargetPort": 5000, "PublishedPort": 0}],
        },
    }


def test_a_component_with_a_volume_stays_on_its_node() -> None:
    text = component('volume = true\nalias = "db"\nmemory_mb = 640\ncpus = 0.5\nstrategy = "recreate"')
    made = process(text, config={})
    assert made.network == "tst"
    assert made.alias == "db"
    assert made.constraints == ("node.labels.blackstart.shop==true",)
    assert made.mounts[2] == Mount("tst-shop", "/data", "volume", read_only=False)
    assert (made.limits.memory_mb, made.limits.reserved_memory_mb, made.limits.cpus) == (640, 320, 0.5)
    assert made.restart_delay_s == 1


def test_the_engine_asks_inside_of_the_dyno_whether_it_is_healthy() -> None:
    asked = service_body(process(component('check = "tcp:5432"')))["TaskTemplate"]["ContainerSpec"]["Healthcheck"]
    assert asked["Test"] == ["CMD", "bash", "-c", ": </dev/tcp/127.0.0.1/5432"]
    assert (asked["StartInterval"], asked["StartPeriod"]) == (1_000_000_000, 60_000_000_000)
    made = process(component('check = "https:5000/health"'))
    assert made.check[-1] == "https://127.0.0.1:5000/health"
    assert "Healthcheck" not in service_body(process())["TaskTemplate"]["ContainerSpec"]


def test_only_who_asks_gets_the_engine() -> None:
    made = process(component("engine_socket = true\nmanagers = true"))
    assert made.constraints == ("node.role==manager",)
    assert "/var/run/docker.sock" in [mount.target for mount in made.mounts]
    assert "/var/run/docker.sock" not in [mount.target for mount in process().mounts]


def test_a_process_on_every_node_and_the_hosts_network() -> None:
    made = process(component('mode = "global"\nnetwork = "host"\nmounts = ["/var/lib/blackstart/router"]'))
    body = service_body(made)
    assert body["Mode"] == {"Global": {}}
    assert body["TaskTemplate"]["Networks"] == [{"Target": "host", "Aliases": []}]
    assert body["EndpointSpec"]["Ports"] == []
    assert made.env["DYNO"] == "web.{{.Node.Hostname}}"
    assert "PORT" not in made.env
    assert not made.mounts[-1].read_only


def test_fixed_ports_are_published_on_the_node() -> None:
    made = process(component("publish = [{ target = 6379, port = 6380 }]"), process_type="web")
    assert made.ports == (Port(5000, 0), Port(6379, 6380))


def test_a_config_var_is_no_template() -> None:
    assert process(config={"A": "{{.Node.Hostname}} {{"}).env["A"] == '{{"{{"}}.Node.Hostname}} {{"{{"}}'


def test_a_config_var_cannot_take_the_platforms_place() -> None:
    made = process(config={"BLACKSTART_SLUG": "d" * 64, "DYNO": "x", "PORT": "1"})
    assert (made.env["BLACKSTART_SLUG"], made.env["DYNO"], made.env["PORT"]) == ("c" * 64, "web.{{.Task.Slot}}", "5000")


def test_nothing_in_a_service_expires_or_names_a_store() -> None:
    assert not re.search(r"https?://|X-Amz", json.dumps(service_body(process())))


def test_a_build_gets_its_own_urls_and_no_credential() -> None:
    env = {"SOURCE_URL": "https://objects.tst.internal/tst/sources/1?X-Amz-Signature=x"}
    made = spec.build_spec(
        SETTINGS, app="shop", app_id=APP_ID, build_id="b", attempt=1, slug="c" * 64, env=env, lacking=()
    )
    assert set(made.env) == {"SOURCE_URL", "BLACKSTART_SLUG", "BLACKSTART_HOME", "DYNO", "NODE", *spec.TRUST_ENV}
    assert made.network is None
    assert made.hosts == ("10.0.0.1 objects.tst.internal", "10.0.0.2 objects.tst.internal")
    assert made.image == ENV["STACK_BUILD"]
    body = service_body(made)
    assert body["Mode"] == {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}
    assert body["TaskTemplate"]["RestartPolicy"] == {"Condition": "none"}
    assert body["TaskTemplate"]["Resources"]["Limits"] == {
        "MemoryBytes": 1536 << 20,
        "NanoCPUs": 1_000_000_000,
        "Pids": 1024,
    }


@pytest.mark.parametrize(
    ("url", "network"),
    [("https://objects:8333", "tst"), ("https://10.0.0.9:8333", None), ("https://s3.example.org", None)],
)
def test_the_fetch_job_is_on_the_network_where_the_store_is(url: str, network: str | None) -> None:
    settings = dataclasses.replace(SETTINGS, objects_url=url)
    made = spec.fetch_spec(settings, slug="c" * 64, url="u", node_id=None)
    assert (made.network, made.mode) == (network, "global-job")
    assert made.mounts[0] == Mount("/var/lib/blackstart/slugs", "/slugs", read_only=False)


def test_a_sweep_spares_what_is_in_use() -> None:
    made = spec.sweep_spec(SETTINGS, keep=frozenset({"d" * 64}), older_than_min=60, number=1)
    assert made.command == (
        *("find", "/slugs", "-maxdepth", "1", "-type", "f", "-name", "*.squashfs", "-mmin", "+60"),
        *("!", "-name", "d" * 64 + ".squashfs", "-delete"),
    )


def test_an_unknown_size_is_the_default() -> None:
    assert process(size="huge").limits == process().limits
    assert process(size="standard-2x").limits.memory_mb == 1024


@given(
    st.from_regex(r"[a-z][a-z0-9-]{1,28}[a-z0-9]", fullmatch=True),
    st.from_regex(r"[a-z][a-z0-9_-]{0,29}", fullmatch=True),
)
def test_every_service_name_is_one_the_engine_takes(app: str, type_: str) -> None:
    name = spec.service_name("platform1234", app, type_, 123456)
    assert len(name) <= 63
    assert re.fullmatch(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*", name)


@given(st.dictionaries(st.text("ABC", min_size=1), st.text(max_size=9)))
def test_two_process_managers_compute_the_same(config: dict[str, str]) -> None:
    again = dict(reversed(list(config.items())))
    assert json.dumps(service_body(process(config=config))) == json.dumps(service_body(process(config=again)))


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(SettingRefused, match="lacks DATABASE_URL"):
        settings_from({**ENV, "DATABASE_URL": ""})
    with pytest.raises(SettingRefused, match="BUILD_TIMEOUT='x' is not a number"):
        settings_from({**ENV, "BUILD_TIMEOUT": "x"})
    with pytest.raises(SettingRefused, match="ROLE='y'"):
        settings_from({**ENV, "ROLE": "y"})


def test_every_setting_is_in_the_readme() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    source = Path(settings_from.__code__.co_filename).read_text()
    for variable in sorted(set(re.findall(r'"([A-Z][A-Z0-9_]{3,})"', source))):
        assert f"`{variable}`" in text, f"README.md does not say what {variable} is"


def test_the_engines_answers_are_read() -> None:
    task = task_from(
        {
            "ID": "t1",
            "CreatedAt": "2026-01-01T00:00:00Z",
            "ServiceID": "s",
            "Slot": 2,
            "NodeID": "n",
            "DesiredState": "running",
            "NetworksAttachments": [
                {"Network": {"Spec": {"Name": "tst"}}, "Addresses": ["10.1.0.5/24"]},
                {"Network": {"Spec": {"Name": "host"}}},
            ],
            "Status": {
                "Timestamp": "2026-01-01T00:00:00.123456789Z",
                "State": "running",
                "Message": "started",
                "PortStatus": {"Ports": [{"TargetPort": 5000, "PublishedPort": 32768, "PublishMode": "host"}]},
            },
        }
    )
    assert (task.phase, task.ports, task.addresses, task.wanted) == ("running", {5000: 32768}, ("10.1.0.5",), True)
    node = node_from(
        {
            "ID": "n",
            "Spec": {"Role": "manager", "Availability": "active"},
            "Description": {"Hostname": "node1"},
            "Status": {"State": "ready", "Addr": "0.0.0.0"},
            "ManagerStatus": {"Addr": "10.0.0.1:2377"},
        }
    )
    assert (node.name, node.address, node.role, node.state) == ("node1", "10.0.0.1", "manager", "ready")


@pytest.mark.parametrize("fraction", ["", ".1", ".12", ".123456", ".123456789"])
def test_times_with_any_number_of_digits_are_read(fraction: str) -> None:
    assert int(unix_time(f"1970-01-01T00:01:00{fraction}Z")) == 60


def test_the_job_that_stops_a_dyno_names_its_container_and_node_and_gets_nothing_else() -> None:
    task = Task("task1", 2, "n1", "running", container="tst_shop_web_v3.2.task1")
    made = spec.stop_spec(SETTINGS, task)
    assert made.command[-1] == "http://engine/containers/tst_shop_web_v3.2.task1/stop?t=30"
    assert made.constraints == ("node.id==n1",)
    assert (made.mode, made.env, made.capabilities, made.network) == ("job", {}, (), None)
    assert [mount.source for mount in made.mounts] == ["/var/run/docker.sock"]
