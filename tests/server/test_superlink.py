"""Tests of the hand on SuperLink that need none; with one, see ``tests/flower/test_contract.py``."""

import io
import os
import tomllib
import zipfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import BadFileError, SuperLinkError
from common.ids import SiteId
from server.superlink import (
    RUN_CONFIG,
    FlowerRun,
    SuperLink,
    codeless_fab,
    flower_environment,
    reach_directly,
)

ROOT = Path(__file__).parents[2]
NOBODY = 9  # the discard port, where nothing listens
SITE = SiteId("berlin")


def bundled() -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(codeless_fab())) as bundle:
        return {name: bundle.read(name).decode() for name in bundle.namelist()}


def test_the_app_bundle_holds_no_code_and_names_the_installed_apps() -> None:
    assert set(bundled()) == {"pyproject.toml", ".info/CONTENT"}
    content = tomllib.loads(bundled()["pyproject.toml"])
    assert content["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "server.app:app",
        "clientapp": "client.app:app",
    }
    assert content["project"]["dependencies"] == []
    assert codeless_fab() == codeless_fab()


def test_the_app_bundle_takes_the_keys_that_the_repository_takes() -> None:
    own = tomllib.loads(bundled()["pyproject.toml"])["tool"]["flwr"]["app"]
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert own["components"] == repository["components"]
    assert own["config"] == dict(RUN_CONFIG) == repository["config"]


def test_a_key_of_no_run_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"got rounds$"):
        SuperLink("127.0.0.1", NOBODY).start_run({"rounds": 3})


def test_a_superlink_that_is_not_there_is_named() -> None:
    link = SuperLink("127.0.0.1", NOBODY)
    assert not link.is_healthy()
    with pytest.raises(
        SuperLinkError, match=r"SuperLink at 127.0.0.1:9: could not ask for the nodes: no answer"
    ):
        link.list_nodes()


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"ecdsa-sha2-nistp384 AAAA",
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ],
)
def test_a_node_key_that_is_none_is_refused(key: bytes) -> None:
    with pytest.raises(BadFileError, match="node key"):
        SuperLink("127.0.0.1", NOBODY).register_node(key, SITE)


def test_a_node_key_is_read_in_both_forms() -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    for form in ((Encoding.OpenSSH, PublicFormat.OpenSSH), (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):
        with pytest.raises(SuperLinkError):
            SuperLink("127.0.0.1", NOBODY).register_node(key.public_bytes(*form), SITE)


def test_a_run_is_over_when_flower_says_finished() -> None:
    states = ("pending", "starting", "running", "finished:completed", "finished:failed", "finished:stopped")
    over = [FlowerRun(flower_id=1, status=status, details="").over for status in states]
    assert over == [False, False, False, True, True, True]


def test_private_addresses_are_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv("no_proxy", "localhost")
    reach_directly("10.0.0.1")
    reach_directly("10.0.0.1")
    assert os.environ["NO_PROXY"] == "localhost,10.0.0.1"
    assert flower_environment(tmp_path)["NO_PROXY"] == "localhost,10.0.0.1"
