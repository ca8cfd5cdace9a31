"""JSON-RPC: what is a message and what is not, and that what goes out is what came in."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
IDS = st.integers(-(2**60), 2**60) | st.text(max_size=30)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", jsonrpc.PARSE_ERROR),
        (b"{", jsonrpc.PARSE_ERROR),
        (b"\xef\xbb\xbf{}", jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","method":"x","params":{"a":"\xff"}}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","method":"x","params":{"a":"\n"}}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","method":"x","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}", jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","method":"x","params":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, jsonrpc.PARSE_ERROR),
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', jsonrpc.INVALID_REQUEST),
        (b"1", jsonrpc.INVALID_REQUEST),
        (b"null", jsonrpc.INVALID_REQUEST),
        (b'{"id":1,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":2.0,"id":1,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 300 + b',"method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 300 + b'","method":"ping"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":7}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","result":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":""}', jsonrpc.INVALID_REQUEST),
    ],
)
def test_what_is_no_message(data: bytes, code: int) -> None:
    with pytest.raises(jsonrpc.Malformed) as caught:
        jsonrpc.decode(data)
    assert caught.value.code == code
    assert "Traceback" not in caught.value.message


def test_kinds() -> None:
    request = jsonrpc.decode(b'{"jsonrpc":"2.0","id":"a","method":"ping"}')
    assert (request.is_request, request.is_notification, request.is_response) == (True, False, False)
    notification = jsonrpc.decode(b'{"jsonrpc":"2.0","method":"ping"}')
    assert (notification.is_request, notification.is_notification, notification.is_response) == (False, True, False)
    response = jsonrpc.decode(b'{"jsonrpc":"2.0","id":1,"result":null}')
    assert (response.is_request, response.is_notification, response.is_response) == (False, False, True)


def test_the_last_of_duplicate_keys_counts_and_only_it_leaves() -> None:
    message = jsonrpc.decode(b'{"jsonrpc":"2.0","id":1,"method":"a","method":"b","params":{"x":1},"params":{"x":2}}')
    assert json.loads(jsonrpc.request(7, message.method, message.params)) == {
        "jsonrpc": "2.0", "id": 7, "method": "b", "params": {"x": 2},
    }  # fmt: skip


@given(IDS, st.text(min_size=1), st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_requests_come_back(id: Any, method: str, params: dict[str, Any]) -> None:
    raw = msgspec.json.encode(id)
    message = jsonrpc.decode(jsonrpc.request(raw, method, msgspec.json.encode(params)))
    assert jsonrpc.as_id(bytes(message.id)) == id
    assert message.method == method
    assert msgspec.json.decode(message.params) == params


@given(IDS, VALUES)
def test_results_come_back(id: Any, value: Any) -> None:
    message = jsonrpc.decode(jsonrpc.result(msgspec.json.encode(id), msgspec.json.encode(value)))
    assert (jsonrpc.as_id(bytes(message.id)), msgspec.json.decode(message.result)) == (id, value)


@given(VALUES)
def test_one_line_says_the_same(value: Any) -> None:
    pretty = json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}, indent=1).encode()
    line = jsonrpc.one_line(pretty)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line)["result"] == value


def test_one_line_refuses_what_would_smuggle_a_line() -> None:
    with pytest.raises(jsonrpc.Malformed):
        jsonrpc.one_line(b'{"a":"x\n{"}')


def test_errors() -> None:
    assert json.loads(jsonrpc.error(b'"a"', -32601, "no", {"x": 1})) == {
        "jsonrpc": "2.0", "id": "a", "error": {"code": -32601, "message": "no", "data": {"x": 1}},
    }  # fmt: skip
    assert jsonrpc.error_fields(b'{"code":-5,"message":"m","data":[1]}').code == -5
    for odd in (b"7", b'{"code":"x"}', b"null", b'{"message":7}'):
        assert jsonrpc.error_fields(odd).code == jsonrpc.INTERNAL_ERROR


def test_fields() -> None:
    assert jsonrpc.decode_fields(b"") == {}
    assert bytes(jsonrpc.decode_fields(b'{"a":1,"a":2}')["a"]) == b"2"
    with pytest.raises(jsonrpc.Malformed) as caught:
        jsonrpc.decode_fields(b"[1]")
    assert caught.value.code == jsonrpc.INVALID_PARAMS
    assert jsonrpc.decode_result(b'{"a":1}').keys() == {"a"}
    with pytest.raises(jsonrpc.Malformed, match="the server's result is no object") as caught:
        jsonrpc.decode_result(b"[1]")
    assert caught.value.code == jsonrpc.INTERNAL_ERROR
    assert jsonrpc.decode_string(b'"a"') == "a"
    assert jsonrpc.decode_string(b"7") is None
    assert jsonrpc.decode_string(None) is None


@pytest.mark.parametrize(
    ("raw", "value"), [(b"1", 1), (b"-1", -1), (b'"a"', "a"), (b"", None), (b"1.0", None), (b"{}", None)]
)
def test_ids(raw: bytes, value: Any) -> None:
    assert jsonrpc.as_id(raw) == value


@pytest.mark.parametrize(
    "params",
    [
        b'{"name":"read","Name":"delete_repo"}',
        b'{"Name":"delete_repo","name":"read"}',
        b'{"name":"read","arguments":{},"Arguments":{"repo":"prod"}}',
        b'{"name":"read","ARGUMENTS":{"repo":"prod"}}',
        b'{"uri":"a:1","Uri":"a:2"}',
        b'{"uri":"a:1","URI":"a:2"}',
        b'{"name":"read","_Meta":{}}',
        '{"requestId":1,"reque\u017ftId":2}'.encode(),
        b'{"name":"read","N\\u0061me":"delete_repo"}',
    ],
)
def test_params_that_another_decoder_reads_otherwise(params: bytes) -> None:
    with pytest.raises(jsonrpc.Malformed, match="differs only by case") as caught:
        jsonrpc.decode_params(params)
    assert caught.value.code == jsonrpc.INVALID_PARAMS


def test_params() -> None:
    assert jsonrpc.decode_params(b"") == {}
    fields = jsonrpc.decode_params(b'{"name":"a","name":"b","arguments":{"Name":1},"Other":1,"other":2}')
    assert jsonrpc.encode_fields(fields) == b'{"name":"b","arguments":{"Name":1},"Other":1,"other":2}'
    with pytest.raises(jsonrpc.Malformed):
        jsonrpc.decode_params(b"[1]")
