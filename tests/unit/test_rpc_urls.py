"""Secrets in URLs: found, refused, and not repeated."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.envs.failures import EpisodeFailure, Failure, FailureKind, boundary
from burnish.rpc.security import NOT_REPEATED, read_token
from burnish.rpc.urls import check_url, secrets_in, shown_value, without_secrets

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:s3cret@h/x", "https://…@h/x"),
        ("redis://:s3cret@h:1", "redis://…@h:1"),
        ("ray://s3cret@h:1", "ray://…@h:1"),
        ("GET https://h/x?code=s3cret&n=2 failed", "GET https://h/x?code=…&n=2 failed"),
        ("https://h/?n=1&X-Amz-Signature=s3cret", "https://h/?n=1&X-Amz-Signature=…"),
        ("https://h/?api_key=s3cret#top", "https://h/?api_key=…#top"),
        ("https://a:s3cret@h and http://b:s3cret@i", "https://…@h and http://…@i"),
        ("https://h/x?n=1&postcode=2&tokens=3", "https://h/x?n=1&postcode=2&tokens=3"),
        ("https://me:s3'cret@h/x", "https://…@h/x"),
        ('https://me:s3"<cr>et@h/x', "https://…@h/x"),
        ("https://h/?accessToken=s3cret&clientSecret=s3cret", "https://h/?accessToken=…&clientSecret=…"),
        ("https://h/?authorization=s3cret&accesstoken=s3cret", "https://h/?authorization=…&accesstoken=…"),
        ("https://h/x#access_token=s3cret", "https://h/x#access_token=…"),
        ("https://h/x#/?token=s3cret", "https://h/x#/?token=…"),
        ("https://h/?tok%65n=s3cret&tok%2565n=s3cret", "https://h/?tok%65n=…&tok%2565n=…"),
        ("https://h/?a[token]=s3cret&AWSAccessKeyId=s3cret", "https://h/?a[token]=…&AWSAccessKeyId=…"),
        ("https://h/?monkey=1&maxTokens=2&keys=3&barcode=4&author=5", "https://h/?monkey=1&maxTokens=2&keys=3&barcode=4&author=5"),
        ("https://me:s3/cret@h/x", "https://…@h/x"),
        ("https://me:s3#cret@h/x", "https://…@h/x"),
        ("https://me:s3?cret@h/x?n=1", "https://…@h/x?n=1"),
        ("https://me:s3@cr/et@h/x", "https://…@h/x"),
        ("https://me@mail.example:s3/cret@h/x", "https://…@h/x"),
        ("https://me:123456/s3cret@h/x", "https://…@h/x"),
        ("http://h:8000,http://me:s3/cret@i", "http://h:8000,http://…@i"),
        ("a://://me:s3/cret@h", "a://…@h"),
        ("https://[::1]:s3/cret@h", "https://…@h"),
        ("https://…@h/x", "https://…@h/x"),
        ("https://h/@user/x", "https://h/@user/x"),
        ("https://h:8000/@user/x and http://[::1]:80/@user", "https://h:8000/@user/x and http://[::1]:80/@user"),
        ("https://h/x?to=a@b.c&at=12:30", "https://h/x?to=a@b.c&at=12:30"),
        ("https://h/x#a:b@c", "https://h/x#a:b@c"),
        ("https://me:/s3cret@h", "https://…@h"),
        ('{"at":"http://h:80","by":"/x@y"}', '{"at":"http://h:80","by":"/x@y"}'),
        ("mongodb://h:1,i:2/x?by=a@b", "mongodb://h:1,i:2/x?by=a@b"),
        ("file:///a:b@c s3://bucket/a:b@c", "file:///a:b@c s3://bucket/a:b@c"),
        ("https://h/?apiKey2=s3cret&pass=s3cret&passphrase=s3cret", "https://h/?apiKey2=…&pass=…&passphrase=…"),
        ("https://h/?key1=s3cret&api_keys[]=s3cret&token_v2=s3cret", "https://h/?key1=…&api_keys[]=…&token_v2=…"),
        ("https://h/?compass=1&pass_k=2&pass@8=3&sha256=4&k8s=5", "https://h/?compass=1&pass_k=2&pass@8=3&sha256=4&k8s=5"),
        ("mail me@h.example, code=1", "mail me@h.example, code=1"),
        ("h:1?ca=/c&key=/k", "h:1?ca=/c&key=/k"),
    ],
)
def test_what_is_secret_in_a_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert bool(list(secrets_in(text))) == (text != shown or "…" in text)
    assert "s3cret" not in " ".join(secrets_in(text))


OTHERS = ("key_column", "pass_k", "pass@8", "pass_rate", "compass", "sha256", "oauth2", "1")


def test_a_secret_that_is_known_is_taken_out_wherever_it_stands() -> None:
    assert without_secrets("you sent Bearer abc", "abc", "") == "you sent Bearer …"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "http://[::1]/x", "http://localhost/x", "https://h.example/x", "HTTPS://h/x"])
def test_a_token_may_go_where_nobody_reads_it(url: str) -> None:
    check_url(url, "token")


@pytest.mark.parametrize(
    "url", ["http://h.example/x", "http://10.0.0.5/x", "http://127.0.0.1.h.example/", "http://localhost@h/", "http://"]
)
def test_a_token_never_goes_in_the_clear(url: str) -> None:
    with pytest.raises(ValueError, match=r"in the clear|holds a user name"):
        check_url(url, "token")
    if "@" not in url:
        check_url(url, None)


@given(st.text(st.characters(exclude_characters=" ", exclude_categories=["Z", "C"]), min_size=4).filter(lambda one: not one[0].isdigit()))
def test_no_password_is_ever_shown(password: str) -> None:
    text = f"https://user:{password}@h/x"
    assert without_secrets(text) == "https://…@h/x"
    with pytest.raises(ValueError, match="a user name or password"):
        check_url(text, None)


def test_a_failure_shows_no_secret_of_a_url_that_somebodys_library_quotes() -> None:
    with pytest.raises(EpisodeFailure) as caught, boundary(FailureKind.ENV_ERROR, "https://me:s3cret@h"):
        raise RuntimeError("cannot read https://me:s3cret@h/x?token=s3cret")
    assert "s3cret" not in str(caught.value)
    assert caught.value.failure.detail.startswith("RuntimeError: cannot read https://…@h/x?token=…\n")
    assert Failure(FailureKind.ENV_ERROR, "a@127.0.0.1:1", "plain").culprit == "a@127.0.0.1:1"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000 + " x://y",
        "a://" * 75_000,
        "x://h?" + "a" * 300_000,
        "x://" + "a@" * 150_000,
        "a:b://" * 50_000,
        "a:b://" * 50_000 + "@",
    ],
)
def test_no_text_takes_the_square_of_its_length(text: str) -> None:
    started = time.process_time()
    without_secrets(text)
    assert time.process_time() - started < 20, "it takes milliseconds; one look at each pair of characters takes minutes"


@pytest.mark.parametrize(
    "field",
    [
        "token",
        "api_key",
        "apiKey",
        "X-Api-Key",
        "client_secret",
        "password",
        "headers",
        "Authorization",
        "auth_header",
        "cookie",
        "token_env",
        "passphrase",
        "pass",
        "secrets",
        "api_keys",
        "accessTokens",
        "password1",
        "password_2_file",
        "key1",
        "api_key_",
        "credentials_json",
        "private_key_pem",
    ],
)
def test_what_a_field_that_may_hold_a_secret_holds_is_not_shown(field: str) -> None:
    assert shown_value("s3cret", "args", field) == shown_value(["s3cret"], f"args.{field}.0") == NOT_REPEATED
    shown = shown_value({"n": 1, "deep": [{field: "s3cret"}, "https://me:s3cret@h"], field: {"a": "s3cret"}}, "args")
    assert "s3cret" not in shown and "'n': 1" in shown
    assert shown_value(None, field) == "None" and shown_value("", field) == "''"


@pytest.mark.parametrize("field", ["max_tokens", "tokens", "keys", "monkey", "barcode", "author", "tokenizer", "file", "name", *OTHERS])
def test_what_other_fields_hold_is_shown(field: str) -> None:
    assert shown_value("s3cret", field) == "'s3cret'"
    assert shown_value("a" * 200, field, most=10) == f"{repr('a' * 200)[:10]}…"


def test_a_variable_is_shown_that_is_written_as_one() -> None:
    with pytest.raises(ValueError, match="environment variable BURNISH_NOT_SET is not set"):
        read_token("BURNISH_NOT_SET", "")
    with pytest.raises(ValueError, match="may be a secret") as caught:
        read_token("sk-s3cret", "")
    assert "s3cret" not in str(caught.value)
