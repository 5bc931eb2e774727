"""SROS2: the policy fits its schema and the running nodes; without security libraries the node says so."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pam_ros.msg", reason="needs the built ROS interfaces")

from geometry_msgs.msg import PointStamped
from ros_harness import FAKE_ACTIVE, REAL_NODE, Client, pam, wait_until

from pam_ros.nodes.start_errors import why_not_started

POLICY = Path(__file__).resolve().parents[1] / "config" / "sros2" / "pam.policy.xml"
# As in SROS2's policy.xsd, version 0.2.0: element → the elements in it, required and other attributes.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "policy": ({"enclaves"}, {"version"}, set()),
    "enclaves": ({"enclave"}, set(), set()),
    "enclave": ({"profiles"}, {"path"}, set()),
    "profiles": ({"profile"}, set(), {"type"}),
    "profile": ({"topics", "services", "actions"}, {"ns", "node"}, set()),
    "topics": ({"topic"}, set(), {"publish", "subscribe"}),
    "services": ({"service"}, set(), {"reply", "request"}),
    "actions": ({"action"}, set(), {"call", "execute"}),
    "topic": (set(), set(), set()),
    "service": (set(), set(), set()),
    "action": (set(), set(), set()),
}
RULES = {"publish", "subscribe", "reply", "request", "call", "execute"}
ACTION_TOPICS, ACTION_SERVICES = ("feedback", "status"), ("cancel_goal", "get_result", "send_goal")


def problems(element: ElementTree.Element) -> Iterator[str]:
    """What breaks the schema."""
    children, required, optional = SCHEMA[element.tag]
    attributes = set(element.attrib)
    if not required <= attributes or not attributes <= required | optional:
        yield f"{element.tag} has the attributes {sorted(attributes)}"
    for rule in attributes & RULES:
        if element.get(rule) not in ("ALLOW", "DENY"):
            yield f"{rule} is {element.get(rule)}"
    if not children and not (element.text or "").strip():
        yield f"an empty {element.tag}"
    if children and not len(element):
        yield f"{element.tag} has nothing in it"
    for child in element:
        if child.tag in children:
            yield from problems(child)
        else:
            yield f"{child.tag} in {element.tag}"


def test_the_policy_fits_the_schema() -> None:
    root = ElementTree.parse(POLICY).getroot()
    assert (root.tag, root.get("version")) == ("policy", "0.2.0")
    assert list(problems(root)) == []


def test_the_check_of_the_schema_finds_mistakes() -> None:
    text = (
        POLICY.read_text().replace('publish="ALLOW"', 'publish="YES"', 1).replace("<service>", "<topic>", 1)
    )
    text = text.replace("</service>", "</topic>", 1).replace(' node="pam"', "")
    assert list(problems(ElementTree.fromstring(text))) == [
        "publish is YES",
        "topic in services",
        "profile has the attributes ['ns']",
    ]


def test_sros2_accepts_the_policy() -> None:
    policy = pytest.importorskip("sros2.policy", reason="SROS2 is not among the Python wheels")
    from lxml import etree

    schema = etree.XMLSchema(etree.parse(policy.get_policy_schema("policy.xsd")))
    schema.assertValid(etree.parse(str(POLICY)))


def allowed(node: str, kind: str, rule: str) -> set[str]:
    """Full names of what the policy allows a node."""
    profile = ElementTree.parse(POLICY).getroot().find(f".//profile[@node='{node}']")
    assert profile is not None
    names = [entry.text or "" for group in profile.findall(kind) if group.get(rule) for entry in group]
    return {
        f"/{node}{name[1:]}" if name.startswith("~") else name if name.startswith("/") else f"/{name}"
        for name in names
    }


def used(robot: Client, node: str) -> tuple[set[str], set[str], set[str]]:
    """Full names of what a running node publishes, subscribes to and serves."""
    ask = robot.node
    lists = (
        ask.get_publisher_names_and_types_by_node(node, "/"),
        ask.get_subscriber_names_and_types_by_node(node, "/"),
        ask.get_service_names_and_types_by_node(node, "/"),
    )
    published, heard, served = ({name for name, _ in each} for each in lists)
    return published, heard, served


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_the_policy_allows_what_the_nodes_do_and_no_more(transport: str) -> None:
    depth = "compressedDepth" if transport == "compressed" else "raw"
    parameters = (f"image_transport:={transport}", f"depth_transport:={depth}", "use_sim_time:=true")
    with pam(*FAKE_ACTIVE, *parameters) as (robot, _):
        robot.wait_for_active()
        robot.publisher(PointStamped, "/clicked_point")  # who can click makes the node listen to transforms
        wait_until(lambda: "/tf" in used(robot, "pam")[1], "the node listens to /tf")
        unused = (
            {"/depth", "/image"}
            if transport == "compressed"
            else {"/depth/compressedDepth", "/image/compressed"}
        )
        for node in ("pam_manager", "pam"):
            published, heard, served = used(robot, node)
            actions = allowed(node, "actions", "execute")
            of_actions = {f"{action}/_action/{part}" for action in actions for part in ACTION_TOPICS}
            assert published == allowed(node, "topics", "publish") | of_actions
            assert heard == allowed(node, "topics", "subscribe") - unused
            of_actions = {f"{action}/_action/{part}" for action in actions for part in ACTION_SERVICES}
            assert served == allowed(node, "services", "reply") | of_actions


def test_a_topic_that_the_policy_forbids_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    monkeypatch.setenv("ROS_SECURITY_KEYSTORE", str(tmp_path))
    refused = "Failed to create subscription: could not create data reader, at /src/subscription.cpp:673"
    assert "the policy of the enclave does not allow a topic" in why_not_started(RuntimeError(refused))
    other = "failed to initialize rcl: directory 'x' does not exist., at /src/rcl/security.c:202\nat more"
    told = why_not_started(RuntimeError(other))
    assert f"directory 'x' does not exist. Check --enclave and the keystore {tmp_path}" in told
    assert "security.c" not in told


def start_with_security(folder: Path, keystore: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ROS_SECURITY_ENABLE": "true",
        "ROS_SECURITY_STRATEGY": "Enforce",
        "ROS_SECURITY_KEYSTORE": str(keystore),
    }
    command = [sys.executable, *REAL_NODE, "--ros-args", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_security_without_a_keystore_is_told(tmp_path: Path) -> None:
    done = start_with_security(tmp_path, Path("/nonexistent/keystore"))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "security is on" in line]
    assert (
        "ROS_SECURITY_KEYSTORE='/nonexistent/keystore' names no folder: create a keystore with sros2" in line
    )
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("sros2") is not None,
    reason="a distribution's Fast DDS has its security libraries",
)
def test_security_with_a_middleware_that_has_none_is_told(tmp_path: Path) -> None:
    enclave = tmp_path / "enclaves" / "pam"
    enclave.mkdir(parents=True)
    for name in ("identity_ca.cert", "cert", "key", "permissions_ca.cert"):
        (enclave / f"{name}.pem").write_text("x")
    for name in ("governance", "permissions"):
        (enclave / f"{name}.p7s").write_text("x")
    done = start_with_security(tmp_path, tmp_path, "--enclave", "/pam")
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    (line,) = [line for line in text.splitlines() if "[pam_node]" in line]
    assert "this Fast DDS was built without its security libraries, as in the ROS wheels: use a ROS" in line
    assert "Traceback" not in text
