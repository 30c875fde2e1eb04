"""JSON that every reader agrees on, batches within their bounds, errors that keep their type."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.rpc import payload
from burnish.rpc.client import BatchedClient, check_address
from burnish.rpc.errors import CODES, RpcRemoteError, RpcTimeout, RpcUnavailable, code_name, error_from
from burnish.rpc.methods import CALL, VERIFY
from burnish.rpc.payload import MAX_JSON_CHARS, MAX_JSON_VALUES, PayloadError, decode_json, encode_json, more_values, plain_json, utf8
from burnish.rpc.server import Server, ServerOptions

pytestmark = pytest.mark.unit

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
objects = st.dictionaries(st.text(), st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))


@settings(deadline=None, max_examples=50)
@given(objects)
def test_json_objects_survive_the_trip_exactly(value: dict[str, Any]) -> None:
    back = decode_json(encode_json(value))
    assert back == value
    assert repr(back) == repr(value)  # 1 stays an int, 1.0 a float, True a bool


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1, math.inf]}, r"a\[1\] is inf"),
        ({"a": {"b": 2**63}}, r"a\.b is an integer beyond 64 bits"),
        ({"a": {1: 2}}, "a has the key 1"),
        ({"a": b"x"}, "a is a bytes"),
        ({"a": ["\ud800"]}, r"a\[0\] holds a lone surrogate"),
    ],
)
def test_what_json_cannot_carry_is_named(value: dict[str, Any], says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        encode_json(value)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "[" * 100_000])
def test_foreign_json_is_checked_when_read(text: str) -> None:
    with pytest.raises(PayloadError):
        decode_json(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1,2,3]", 3), ('{"a":[1,2,3],"b":2}', 5), ("[[], []] [1, 2, 3]", 2), ("[{ },{},{\n}]", 3), ('["\\",[,{,"]', 1),
        ("[]" + " " * 9, 0), ('{"a,[":"' + "x,[" * 9, 1), ("[[[[[[", 6), ("5,5,5,5", 0), ('"a","b"', 0), ('"' + '\\"' * 9, 0),
    ],
)  # fmt: skip
def test_values_are_counted_before_any_of_them_is_made(text: str, values: int) -> None:
    assert not more_values(text, values) and (not values or more_values(text, values - 1))


def test_what_follows_a_value_is_not_looked_through_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of 600,000 numbers in a line the rest of the line was: 1.2 MB took hours."""
    monkeypatch.setattr(payload, "_MARKS", None)
    assert not more_values("{} " + "1 " * 9, 1, 3) and not more_values(' "a,b"', 0)


def test_json_of_more_values_than_a_message_carries_is_refused() -> None:
    """5.7 MiB of empty lists held a server's loop for 11 seconds."""
    assert len(decode_json('{"a":[' + "[]," * (MAX_JSON_VALUES - 2) + "0]}")["a"]) == MAX_JSON_VALUES - 1
    tracemalloc.start()
    with pytest.raises(PayloadError, match="more than 100000 JSON values"):
        decode_json('{"a":[' + "[]," * 2_000_000 + "0]}")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert len(decode_json('{"a":"' + "," * (MAX_JSON_CHARS - 8) + '"}')["a"]) == MAX_JSON_CHARS - 8
    with pytest.raises(PayloadError, match="8388609 characters of JSON; the limit is 8388608"):
        decode_json('{"a":"' + "," * (MAX_JSON_CHARS - 7) + '"}')


def test_of_keys_of_any_length_a_place_says_the_beginning() -> None:
    """The place of each of 90,000 values began with the whole key, and so did the answer."""
    key = "k" * (4 << 20)
    tracemalloc.start()
    with pytest.raises(PayloadError, match=r"^k{80}…\[90000\] is inf, not a finite number$"):
        decode_json(f'{{"{key}":[' + "0," * 90_000 + "1e999]}")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    with pytest.raises(PayloadError, match=r"has the key 'k{79}, which is not a valid string$"):
        plain_json({key + "\ud800": 1})


def test_lone_surrogates_become_question_marks() -> None:
    assert utf8("a\ud800bé") == "a?bé"


def test_errors_are_typed_and_survive_pickling() -> None:
    assert isinstance(error_from("a:1", CODES["UNAVAILABLE"], "gone"), RpcUnavailable)
    assert isinstance(error_from("a:1", CODES["DEADLINE_EXCEEDED"], "late"), RpcTimeout)
    error = pickle.loads(pickle.dumps(error_from("a:1", CODES["UNKNOWN"], "boom")))
    assert isinstance(error, RpcRemoteError)
    assert (error.address, error.message, code_name(error.code)) == ("a:1", "boom", "UNKNOWN")


def test_codes_are_grpcs_own() -> None:
    grpc = pytest.importorskip("grpc")
    ours = {name: number for name, number in CODES.items() if number}
    assert ours == {code.name: code.value[0] for code in grpc.StatusCode if code.name in ours}


def test_a_pickled_client_is_an_address() -> None:
    for method in (VERIFY, CALL):
        client = pickle.loads(pickle.dumps(BatchedClient("127.0.0.1:5", method)))
        assert client.address == "127.0.0.1:5"
        assert client.method is method


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:", ":80", "127.0.0.1:0", "127.0.0.1:http", "h:70000"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(ValueError, match="must read host:port"):
        check_address(address)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.com", "::"])
def test_only_loopback_is_served(host: str) -> None:
    with pytest.raises(ValueError, match="not loopback"):
        Server([], ServerOptions(host=host))
