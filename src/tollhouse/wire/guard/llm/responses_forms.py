"""Where texts stand in OpenAI responses: in a request, in an answer and in the items of both.

Rule: what goes on over several events of a stream is known by the number of its item in the output, the number of its
part, and its label; so the whole answer at the end of a stream names the same texts as the pieces did.
"""

from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.citations import Cited
from tollhouse.wire.guard.llm.forms import SKIP, Form, Json, JsonText, Link, Opaque, Other, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged
from tollhouse.wire.guard.llm.tokens import Tokens

__all__ = ["ANNOTATION", "ANSWER", "ITEM", "PART", "REQUEST"]

ANNOTATION = Object(
    {
        "type": SKIP,
        "title": Text("text"),
        "url": Text("text"),
        "filename": Text("text"),
        "file_id": SKIP,
        "container_id": SKIP,
    }
)
_PART: dict[str, Form | None] = {"type": SKIP, "prompt_cache_breakpoint": SKIP}
PART = Tagged(
    "type",
    {
        "input_text": Object({**_PART, "text": Text()}),
        "text": Object({**_PART, "text": Text()}),
        "output_text": Cited(
            {**_PART, "text": Text(label="text"), "annotations": Each(ANNOTATION), "logprobs": Tokens(b"[]")},
            text="text",
            citations="annotations",
            stale={"logprobs": b"[]"},
        ),
        "refusal": Object({**_PART, "refusal": Text(label="refusal")}),
        "reasoning_text": Object({**_PART, "text": Text("reasoning", label="content")}),
        "summary_text": Object({**_PART, "text": Text("reasoning", label="summary")}),
        "input_image": Object({**_PART, "image_url": Link("image"), "file_id": Opaque("image"), "detail": SKIP}),
        "input_file": Object(
            {
                **_PART,
                "file_data": Blob("file", only=True),
                "file_url": Link("file"),
                "file_id": Opaque("file"),
                "filename": Text(),
                "detail": SKIP,
            }
        ),
        "input_audio": Object({**_PART, "input_audio": Opaque("audio")}),
        "output_audio": Object({**_PART, "data": Opaque("audio"), "transcript": Text(label="transcript")}),
        "computer_screenshot": Object({**_PART, "image_url": Link("image"), "file_id": Opaque("image")}),
    },
)
"""A part of a message's content, of a thought or of a tool's output."""

_CONTENT = Choice(text=Text(), many=Each(PART, numbered=True), one=PART)
_ITEM: dict[str, Form | None] = {
    "type": SKIP,
    "id": SKIP,
    "status": SKIP,
    "call_id": SKIP,
    "name": Text("names"),
    "namespace": SKIP,
    "server_label": SKIP,
    "approval_request_id": SKIP,
    "caller": SKIP,
    "created_by": SKIP,
}
_ARGUMENTS = Choice(text=JsonText("arguments", label="arguments"), one=Json("arguments"))
_MESSAGE: dict[str, Form | None] = {**_ITEM, "role": SKIP, "phase": SKIP, "content": _CONTENT}
_RESULT = Object({**_ITEM, "output": _CONTENT, "max_output_length": SKIP}, kind="results")
_ACTED = Object({**_ITEM, "environment": SKIP}, rest=Other("arguments"))
_SERVED = Object(_ITEM, rest=Other("results"))
_OUTPUT = Tagged(
    "type",
    {
        "logs": Object({"type": SKIP, "logs": Text("results")}),
        "image": Object({"type": SKIP, "url": Link("image")}),
    },
)
ITEM = Tagged(
    "type",
    {
        "message": Tagged(
            "role",
            {"system": Object(_MESSAGE, kind="system"), "developer": Object(_MESSAGE, kind="system")},
            default=Object(_MESSAGE),
            role=True,
        ),
        "function_call": Object({**_ITEM, "arguments": _ARGUMENTS, "extra_content": SKIP}),
        "custom_tool_call": Object({**_ITEM, "input": Text("arguments", label="input")}),
        "function_call_output": _RESULT,
        "custom_tool_call_output": _RESULT,
        "computer_call_output": _RESULT,
        "local_shell_call_output": _RESULT,
        "shell_call_output": _SERVED,
        "apply_patch_call_output": _SERVED,
        "reasoning": Object(
            {
                **_ITEM,
                "summary": Each(PART, numbered=True),
                "content": Each(PART, numbered=True),
                "encrypted_content": Opaque("encrypted"),
            }
        ),
        "compaction": Object({**_ITEM, "encrypted_content": Opaque("encrypted")}),
        "web_search_call": _ACTED,
        "computer_call": _ACTED,
        "local_shell_call": _ACTED,
        "shell_call": _ACTED,
        "apply_patch_call": _ACTED,
        "file_search_call": Object({**_ITEM, "queries": Json("arguments"), "results": Json("results")}),
        "code_interpreter_call": Object(
            {**_ITEM, "container_id": SKIP, "code": Text("arguments", label="code"), "outputs": Each(_OUTPUT)}
        ),
        "image_generation_call": Object(
            {
                **_ITEM,
                "result": Opaque("image"),
                "revised_prompt": Text("text"),
                "background": SKIP,
                "output_format": SKIP,
                "quality": SKIP,
                "size": SKIP,
                "action": SKIP,
            }
        ),
        "mcp_call": Object({**_ITEM, "arguments": _ARGUMENTS, "output": Text("results"), "error": Other("results")}),
        "mcp_list_tools": Object({**_ITEM, "tools": Json("descriptions"), "error": Other("results")}),
        "mcp_approval_request": Object({**_ITEM, "arguments": _ARGUMENTS}),
        "mcp_approval_response": Object({**_ITEM, "approve": SKIP, "reason": Text()}),
        "item_reference": Object(_ITEM),
    },
    missing="message",
)
"""An item of the input or the output."""

_ECHO = Other("echo")
ANSWER = Object(
    {
        "id": SKIP,
        "object": SKIP,
        "status": SKIP,
        "model": SKIP,
        "created_at": SKIP,
        "completed_at": SKIP,
        "output": Each(ITEM, numbered=True),
        "error": Json("text"),
        "incomplete_details": Json("beside"),
        "usage": SKIP,
        "reasoning": SKIP,
        "tool_choice": SKIP,
        "previous_response_id": SKIP,
        "conversation": SKIP,
        "service_tier": SKIP,
        "truncation": SKIP,
        "billing": SKIP,
        "prompt_cache_retention": SKIP,
        "instructions": _ECHO,
        "input": _ECHO,
        "tools": _ECHO,
        "text": _ECHO,
        "prompt": _ECHO,
        "metadata": _ECHO,
        "user": _ECHO,
        "safety_identifier": _ECHO,
        "prompt_cache_key": _ECHO,
    }
)
"""A response. It tells the request again."""

_OFFERED: dict[str, Form | None] = {
    "type": SKIP,
    "name": Text("names"),
    "description": Text("descriptions"),
    "strict": SKIP,
    "parameters": Json("descriptions"),
    "format": Json("descriptions"),
}
_HOSTED: dict[str, Form | None] = {
    "type": SKIP,
    "server_label": SKIP,
    "server_url": Text(),
    "server_description": Text("descriptions"),
    "authorization": SKIP,
    "headers": SKIP,
    "allowed_tools": SKIP,
    "require_approval": SKIP,
    "connector_id": SKIP,
}
_DESCRIBED = Other("descriptions")
REQUEST = Object(
    {
        "model": SKIP,
        "input": Choice(text=Text(), many=Each(ITEM)),
        "instructions": Text("system"),
        "tools": Each(
            Tagged(
                "type",
                {"mcp": Object(_HOSTED, rest=_DESCRIBED)},
                default=Object(_OFFERED, rest=_DESCRIBED),
            )
        ),
        "text": Json("descriptions"),
        "prompt": Object({"id": SKIP, "version": SKIP, "variables": Json()}),
        "tool_choice": SKIP,
        "reasoning": SKIP,
        "include": SKIP,
        "truncation": SKIP,
        "previous_response_id": SKIP,
        "conversation": SKIP,
        "context_management": SKIP,
        "stream_options": SKIP,
        "service_tier": SKIP,
        "prompt_cache_retention": SKIP,
    }
)
