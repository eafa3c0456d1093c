"""Lifecycle events for clients: one reader per tenant for all who follow it, by any door."""

from maestro_gateway.events.feed import Feeds
from maestro_gateway.events.query import Query

__all__ = ["Feeds", "Query"]
