"""Tasks in the words of either era."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import tasks

STATUS = st.sampled_from(["working", "input_required", "completed", "failed", "cancelled"])
OLD = st.fixed_dictionaries(
    {
        "taskId": st.text(min_size=1),
        "status": STATUS,
        "createdAt": st.text(),
        "lastUpdatedAt": st.text(),
        "ttl": st.none() | st.integers(1, 10**9),
    },
    optional={"pollInterval": st.integers(1, 10**6), "statusMessage": st.text()},
)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def seen(fields: dict[str, Any]) -> Any:
    return msgspec.json.decode(jsonrpc.encode_fields(fields))


@given(OLD)
def test_what_both_eras_say_of_a_task_survives_the_way_there_and_back(task: Any) -> None:
    new = tasks.as_new(encoded(task), "ours")
    assert {"ttl", "pollInterval"}.isdisjoint(new)
    assert seen(tasks.as_old(jsonrpc.encode_fields(new), task["taskId"])) == task


def test_a_failed_tool_is_a_failed_task_before_2026() -> None:
    task = {"taskId": "x", "status": "completed", "ttlMs": 1, "result": {"isError": True, "content": []}}
    assert seen(tasks.as_old(encoded(task), "y")) == {"taskId": "y", "status": "failed", "ttl": 1}
    task["result"] = {"isError": False}
    assert seen(tasks.as_old(encoded(task), "y"))["status"] == "completed"


@pytest.mark.parametrize(
    "result,found",
    [
        ({"task": {"taskId": "a"}}, {"taskId": "a"}),
        ({"task": {"id": "a"}}, None),
        ({"task": 7}, None),
        ({"task": {"taskId": 7}}, None),
        ({"content": []}, None),
        ([], None),
    ],
)
def test_created(result: Any, found: Any) -> None:
    made = tasks.created(encoded(result))
    assert (json.loads(bytes(made)) if made is not None else None) == found


def test_what_a_message_is_about() -> None:
    params = {"a": 1, "_meta": {"v": 2, tasks.RELATED: {"taskId": "theirs"}}}
    assert tasks.about(encoded(params)) == "theirs"
    assert tasks.about(b"{}") is None
    changed = json.loads(bytes(tasks.related(encoded(params), "ours")))
    assert changed == {"a": 1, "_meta": {"v": 2, tasks.RELATED: {"taskId": "ours"}}}
    assert json.loads(bytes(tasks.related(encoded(params), ""))) == {"a": 1, "_meta": {"v": 2}}


@pytest.mark.parametrize(
    "task,seconds",
    [({}, 1.0), ({"pollIntervalMs": 200}, 0.2), ({"pollInterval": 1}, 0.05), ({"pollIntervalMs": 1e9}, 5.0),
     ({"pollIntervalMs": "x"}, 1.0), ({"pollIntervalMs": None}, 1.0)],
)  # fmt: skip
def test_the_pace_of_looks_is_bounded(task: Any, seconds: float) -> None:
    assert tasks.interval(encoded(task)) == seconds


def test_who_has_tasks() -> None:
    raw = msgspec.json.decode
    new = raw(encoded({"extensions": {tasks.EXTENSION: {}}}), type=dict[str, msgspec.Raw])
    old = raw(encoded({"tasks": {"requests": {"tools": {"call": {}}}}}), type=dict[str, msgspec.Raw])
    odd = raw(encoded({"tasks": {"requests": 7}, "extensions": []}), type=dict[str, msgspec.Raw])
    assert [tasks.offers(one) for one in (new, old, odd)] == [True, False, False]
    assert [tasks.runs(one) for one in (new, old, odd)] == [False, True, False]
