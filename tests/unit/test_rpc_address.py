"""Addresses and security profiles: what is accepted, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from burnish.cli.main import app
from burnish.recipe.services import ServiceConfig
from burnish.rpc.address import Endpoint, is_dynamic, shown_address
from burnish.rpc.security import ClientSecurity, ServerSecurity, read_token

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:50051", "[::1]:50051", "10.0.0.5:1,10.0.0.6:2", "ray:verdicts", "h:1?ca=/c.pem&token_env=T", "h:1?tls=1&server_name=x"],
)
def test_an_address_is_read_and_written_alike(address: str) -> None:
    assert Endpoint.parse(str(Endpoint.parse(address))) == Endpoint.parse(address)
    assert Endpoint.parse(address).shown == shown_address(address)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("h:1,h:1", "names a replica twice"),
        ("h:1,h", "must read host:port"),
        ("::1:50051", "must read host:port"),
        ("ray:", "must read ray:NAME"),
        ("h:1?cacert=x", "'cacert' is unknown"),
        ("h:1?token_env=T", "the token would travel in the clear"),
        ("ray:verdicts?token_env=T", "the token would travel in the clear"),
        ("127.0.0.1:1,h:1?token_file=/t", "the token would travel in the clear"),
        ("unix:/run/x:1", "must read host:port"),
        ("dns:///h:1", "must read host:port"),
        ("ray:a\n", "must read ray:NAME"),
        ("h:1?ca=/c.pem&cert=/x.pem", "key is missing"),
        ("h:1?server_name=x", "no effect without TLS"),
        ("h:1?ca=/c&token_env=T&token_file=/t", "not both"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Endpoint.parse(address)


@pytest.mark.parametrize("address", ["h:1?token=s3cret", "h:1?s3cret", "me:s3cret@h:1", "s3cret@h:1", "h:1?password=s3cret&tls=1"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ValueError) as caught:
        Endpoint.parse(address)
    assert "s3cret" not in str(caught.value)


def test_only_names_and_deployments_change_over_time() -> None:
    assert [is_dynamic(Endpoint.parse(one)) for one in ("10.0.0.5:1", "localhost:1", "[::1]:1", "h.example:1", "ray:x")] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_files_of_a_service_keep_their_places_in_the_folder_of_the_run_wherever_that_is() -> None:
    service = ServiceConfig(address="h:1", tls={"ca": "ca.pem"}, token_file="keys/token")  # type: ignore[arg-type]
    assert Endpoint.parse(service.full_address).security == ClientSecurity(ca="ca.pem", token_file="keys/token", tls=True)
    with pytest.raises(ValueError, match="token_env has no effect without address"):
        ServiceConfig(tools="m", token_env="T")


def test_what_servers_accept() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerSecurity().check_host(host)
    guarded = (ServerSecurity("c", "k", token_env="T"), ServerSecurity("c", "k", "ca"), ServerSecurity(token_file="t", insecure=True))
    for accepted in guarded:
        accepted.check_host("0.0.0.0")
    with pytest.raises(ValueError, match="the token would travel in the clear"):
        ServerSecurity(token_env="T").check_host("10.0.0.5")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.5", "h.example", "0", "127.1.example"])
def test_no_server_beyond_loopback_lets_in_whoever_reaches_it(host: str) -> None:
    for unguarded in (ServerSecurity(), ServerSecurity("c", "k"), ServerSecurity(insecure=True)):
        with pytest.raises(ValueError, match=r"is not loopback: whoever reaches the port may call.*--token-file"):
            unguarded.check_host(host)


def test_tokens_are_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    monkeypatch.setenv("BURNISH_TEST_TOKEN", "abc")
    assert (read_token("", str(file)), read_token("BURNISH_TEST_TOKEN", ""), read_token("", "")) == ("s3cret", "abc", "")
    for content, says in (("", "is empty"), ("two words", "one line of printable ASCII"), ("né", "one line of printable ASCII")):
        file.write_text(content)
        with pytest.raises(ValueError, match=says):
            read_token("", str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        read_token("", str(tmp_path / "none"))


def test_how_tls_is_turned_on_is_said_for_each_place_and_can_be_followed() -> None:
    with pytest.raises(
        ValidationError, match=r'tls = \{ ca = "…" \}, or tls = \{\} .* in a recipe, --tls-ca to a command, .*\?tls=1 in an address'
    ):
        ServiceConfig.model_validate({"address": "h:1", "token_env": "T"})
    for tls in ({"ca": "ca.pem"}, {}):
        assert ServiceConfig.model_validate({"address": "h:1", "token_env": "T", "tls": tls}).full_address
    assert Endpoint.parse("h:1?token_env=T&tls=1").security.secure
    said = CliRunner().invoke(app, ["check", "h:1", "--tls-cert", "c.pem", "--tls-key", "k.pem"])
    assert said.exit_code == 2 and "--tls-ca to a command" in said.stderr
