"""Signatures: golden values of botocore's signer, for Bedrock's paths above all."""

import pytest

from tollhouse.backends.sigv4 import AWSCredentials, Signer

NOW = 1795342830.0  # 2026-11-22 10:20:30 UTC
KEY = AWSCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SESSION = AWSCredentials(KEY.access_key, KEY.secret_key, "tok/en==")
HEADERS = (
    (b"host", b"bedrock-runtime.us-east-1.amazonaws.com"),
    (b"content-type", b"application/json"),
    (b"x-odd", b"  a   b "),
)
MODEL = b"/model/anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse"
PROFILE = (
    b"/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2F"
    b"us.anthropic.claude-3-5-sonnet-20241022-v2%3A0/converse-stream"
)


def signature(lines: bytes) -> str:
    return lines.rpartition(b"Signature=")[2].strip().decode()


@pytest.mark.parametrize(
    ("credentials", "method", "path", "query", "body", "golden"),
    [
        (SESSION, b"POST", MODEL, b"", b'{"a":1}', "0c97d33984ce933a6a7813947b84e8f82fbc22838c8b8ac59fbecbe947205693"),
        (KEY, b"POST", PROFILE, b"", b"{}", "ad7dbe901fafee08fcbde13e607072a2da68bec876cb71478e0650047346a02a"),
        (KEY, b"GET", b"/", b"b=2&a=1&a=0&c&d=x%20y", b"",
         "dd7c0b6a390d7688aad5f8e577362076e055caac5341c5f0d549723d54830bd9"),
        (AWSCredentials(KEY.access_key, KEY.secret_key, "t"), b"GET", b"/a//b/./c/../d/", b"", b"",
         "145069cc7e77445ce087a80f41efc9d5a5b4781b53b94c141db79c1f130dee05"),
        (KEY, b"POST", b"/model/a b~c/converse", b"", b"x" * 1000,
         "31537875f685d7ce59431e7eff36f37f0f6f02f49082fd3268cf108aef68fb88"),
    ],
)  # fmt: skip
def test_golden_signatures(
    credentials: AWSCredentials, method: bytes, path: bytes, query: bytes, body: bytes, golden: str
) -> None:
    signer = Signer("us-east-1", "bedrock")
    for _ in range(2):  # made, and remembered
        lines = signer.lines(credentials, NOW, method=method, path=path, query=query, headers=HEADERS, body=body)
        assert signature(lines) == golden


def test_a_request_of_the_sdk() -> None:
    body = (
        b'{"messages": [{"role": "user", "content": [{"text": "hi"}, {"image": {"format": "png", "source": '
        b'{"bytes": "iVBORw=="}}}]}]}'
    )
    lines = Signer("us-east-1", "bedrock").lines(
        SESSION,
        NOW + 0.9,
        method=b"POST",
        path=MODEL,
        headers=((b"content-type", b"application/json"), (b"host", b"127.0.0.1:1")),
        body=body,
    )
    assert lines == (
        b"x-amz-date: 20261122T102030Z\r\nx-amz-security-token: tok/en==\r\n"
        b"authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261122/us-east-1/bedrock/aws4_request, "
        b"SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, "
        b"Signature=e6f298346234556b11e7bb00bc418d3193907d1180d349ee3ac2bc1ac33b0a50\r\n"
    )


def test_a_new_day_or_secret_makes_a_new_signing_key() -> None:
    signer = Signer("us-east-1", "bedrock")

    def sign(credentials: AWSCredentials, now: float) -> bytes:
        return signer.lines(credentials, now, method=b"POST", path=MODEL, headers=HEADERS, body=b"")

    other = AWSCredentials("AKIDEXAMPLE", "other")
    first = sign(KEY, NOW)
    found = [first, sign(KEY, NOW + 86_400), sign(other, NOW), sign(KEY, NOW)]
    assert found[3] == first
    assert len({signature(lines) for lines in found}) == 3
    fresh = Signer("us-east-1", "bedrock")
    assert found[2] == fresh.lines(other, NOW, method=b"POST", path=MODEL, headers=HEADERS, body=b"")


def test_fields_of_one_name_are_joined() -> None:
    def sign(*fields: tuple[bytes, bytes]) -> str:
        signer = Signer("eu-west-1", "bedrock")
        return signature(signer.lines(KEY, NOW, method=b"GET", path=b"/", headers=fields, body=b""))

    assert sign((b"host", b"h"), (b"x", b"1"), (b"x", b" 2")) == sign((b"x", b"1,2"), (b"host", b"h"))


def test_a_secret_is_in_no_repr() -> None:
    assert "wJalr" not in repr(SESSION)
    assert "tok/en" not in repr(SESSION)
    assert "AKIDEXAMPLE" in repr(SESSION)
