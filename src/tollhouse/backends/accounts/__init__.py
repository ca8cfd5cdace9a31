"""Accounts that users have connected at servers of others: the gateway is the OAuth client, and each call of a user
carries the token of his own account there (MCP authorization; RFC 6749, 7009, 7591, 7636, 8414, 8707, 9207, 9728)."""

from tollhouse.backends.accounts.directory import Directory
from tollhouse.backends.accounts.records import Account, AccountRefused, Opened
from tollhouse.backends.accounts.settings import AccountSettings, OurAddresses
from tollhouse.backends.accounts.third_party import ThirdParty

__all__ = ["Account", "AccountRefused", "AccountSettings", "Directory", "Opened", "OurAddresses", "ThirdParty"]
