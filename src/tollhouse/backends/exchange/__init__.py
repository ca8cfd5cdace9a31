"""Tokens from issuers elsewhere: one client that asks, and a file for each way of asking."""

from tollhouse.backends.exchange.client import Elsewhere, ElsewhereSettings

__all__ = ["Elsewhere", "ElsewhereSettings"]
