"""The values of the call floor."""

import pytest

from tollhouse.core.call import Context


def test_a_context_is_set_as_any_object_with_slots() -> None:
    context = Context(route="chat")
    context.began = 1.0
    context.tags = ("a", "b")
    assert (context.route, context.began, context.tags) == ("chat", 1.0, ("a", "b"))
    assert type(context).__setattr__ is object.__setattr__
    with pytest.raises(AttributeError):
        context.unknown = 1  # type: ignore[attr-defined]
    assert Context().tags == ()


def test_a_context_shows_nothing_secret() -> None:
    assert repr(Context(request_id="r1", credential=b"Bearer abc")) == "<Context of 'r1'>"
