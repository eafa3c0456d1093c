"""Answers that are given again: on routes with `cache`, to the same request of the same tenant, free of charge."""

from maestro_gateway.cache.lookup import Lookup, cache_state, look_up
from maestro_gateway.cache.replay import replay
from maestro_gateway.cache.store import AnswerStore, caching

__all__ = ["AnswerStore", "Lookup", "cache_state", "caching", "look_up", "replay"]
