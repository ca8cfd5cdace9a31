"""All servers of a configuration at which users have accounts."""

from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from tests.fixtures.third_party import CALLBACK, DOCUMENT, START, third_party, user

from tollhouse.backends.accounts import Directory, OurAddresses
from tollhouse.wire.client_metadata import ClientMetadata

pytestmark = pytest.mark.anyio

OURS = OurAddresses(START, CALLBACK, DOCUMENT)


async def test_a_server_is_found_by_its_name_and_a_link_by_its_server() -> None:
    async with third_party() as side:
        other = side.node(server="other")
        directory = Directory([side.party, other])
        assert directory.all() == (side.party, other)
        assert directory.find("other") is other
        assert directory.find("nothing") is None
        (link,) = parse_qs(urlsplit(other.link(user())).query)["l"]
        found = directory.opened(link)
        assert found is not None
        assert (found[0], found[1].server) == (other, "other")
        assert directory.opened(link + "x") is None
        assert Directory([side.party]).opened(link) is None


async def test_the_document_names_all_callbacks_and_is_what_others_expect() -> None:
    async with third_party(ours=OURS) as side:
        other = side.node(server="other", ours=OurAddresses(START, CALLBACK + "2", DOCUMENT))
        found = Directory([side.party, other], DOCUMENT).client_metadata()
        assert found is not None
        assert found["redirect_uris"] == [CALLBACK, CALLBACK + "2"]
        assert found["client_id"] == DOCUMENT
        assert found["token_endpoint_auth_method"] == "none"
        assert "client_secret" not in found
        assert ClientMetadata.parse(msgspec.json.encode(found)).client_name == "Tollhouse"
        assert Directory([side.party]).client_metadata() is None
