"""Tests of the nodes that SuperLink takes."""

from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import BadFileError, SuperLinkError
from common.ids import SiteId
from server.grid import read_nodes
from server.home import CoordinatorHome
from server.nodes import Nodes
from server.presence import read_presence
from server.site_records import revoke
from server.superlink import SuperLink
from tests.server.homes import FakeLink, enrolled, made_home

BERLIN, PARIS = SiteId("berlin"), SiteId("paris")


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return made_home(tmp_path / "home")


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def nodes(home: CoordinatorHome, link: FakeLink, told: list[tuple[str, dict[str, Any]]]) -> Nodes:
    return Nodes(home, cast(SuperLink, link), lambda event, **facts: told.append((event, facts)))


def test_a_node_is_registered_if_and_only_if_its_key_is_that_of_an_enrolled_site(
    home: CoordinatorHome, link: FakeLink, nodes: Nodes
) -> None:
    stranger = link.register_node(b"a stranger's key", SiteId("stranger"))
    enrolled(home, BERLIN)
    nodes.sync()
    assert stranger not in link.nodes
    assert [node.site for node in link.nodes.values()] == [BERLIN]
    enrolled(home, PARIS)
    nodes.sync()
    assert [node.site for node in link.nodes.values()] == [BERLIN, PARIS]


def test_a_site_that_was_revoked_is_refused_from_the_next_look_on(
    home: CoordinatorHome, link: FakeLink, nodes: Nodes, told: list[tuple[str, dict[str, Any]]]
) -> None:
    enrolled(home, BERLIN, PARIS)
    nodes.sync()
    revoke(home, BERLIN)
    nodes.sync()
    assert [node.site for node in link.nodes.values()] == [PARIS]
    assert [(event, facts["site"]) for event, facts in told] == [
        ("node-registered", BERLIN),
        ("node-registered", PARIS),
        ("node-taken-out", BERLIN),
    ]


def test_a_node_that_somebody_else_took_out_meanwhile_is_no_error(
    home: CoordinatorHome, link: FakeLink, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(number: int) -> None:
        link.nodes.clear()
        raise SuperLinkError("unregister", "fake", "status 404")

    link.register_node(b"a stranger's key", SiteId("stranger"))
    monkeypatch.setattr(link, "unregister_node", gone)
    nodes.sync()
    link.register_node(b"another stranger's key", SiteId("stranger"))
    monkeypatch.setattr(link, "unregister_node", stay)
    with pytest.raises(SuperLinkError):
        nodes.sync()


def stay(number: int) -> None:
    raise SuperLinkError("unregister", "fake", "status 500")


def test_looking_again_changes_nothing(home: CoordinatorHome, link: FakeLink, nodes: Nodes) -> None:
    enrolled(home, BERLIN)
    nodes.sync()
    before = dict(link.nodes)
    nodes.sync()
    assert link.nodes == before


def test_server_apps_find_the_sites_by_node(home: CoordinatorHome, link: FakeLink, nodes: Nodes) -> None:
    enrolled(home, BERLIN, PARIS)
    nodes.sync()
    sites = {number: node.site for number, node in link.nodes.items()}
    assert read_nodes(home.run / "nodes.json") == sites


def test_it_is_known_when_a_site_was_last_heard_of(
    home: CoordinatorHome, link: FakeLink, nodes: Nodes
) -> None:
    enrolled(home, BERLIN)
    assert not nodes.sync()[BERLIN].online
    link.come_online(BERLIN)
    seen = nodes.sync()[BERLIN]
    assert seen.online and seen.last_seen
    link.nodes = {
        number: node.__class__(**{**vars(node), "online": False}) for number, node in link.nodes.items()
    }
    gone = nodes.sync()[BERLIN]
    assert (gone.online, gone.last_seen) == (False, seen.last_seen)
    assert read_presence(home) == {BERLIN: gone}


def test_a_node_that_is_not_taken_keeps_no_other_waiting(
    home: CoordinatorHome, link: FakeLink, nodes: Nodes, told: list[tuple[str, dict[str, Any]]]
) -> None:
    enrolled(home, BERLIN, PARIS)
    nodes.sync()
    # As where a site enrols again with the key that it was revoked with.
    (number,) = (number for number, node in link.nodes.items() if node.site == BERLIN)
    link.unregister_node(number)
    for _ in range(2):
        nodes.sync()
    assert nodes.problems() == {BERLIN: "status 412: already in use"}
    assert [event for event, _ in told].count("node-refused") == 1
    assert list(read_nodes(home.run / "nodes.json").values()) == [PARIS]


def test_a_superlink_that_is_away_is_an_error(nodes: Nodes, link: FakeLink) -> None:
    link.away = True
    with pytest.raises(SuperLinkError):
        nodes.sync()


@pytest.mark.parametrize("content", ["", "[]", '{"sites": []}', '{"sites": {"berlin": {"online": true}}}'])
def test_a_list_of_sites_that_is_none_is_refused(home: CoordinatorHome, content: str) -> None:
    assert read_presence(home) == {}
    (home.run / "sites.json").write_text(content)
    with pytest.raises(BadFileError, match="not a list of sites"):
        read_presence(home)
