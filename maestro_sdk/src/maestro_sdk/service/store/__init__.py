"""Where counts are kept that several processes share: in a Redis-compatible store, or in the process when there is one.

Both keep the same two things, exactly: sums over a sliding window, and places that are taken and given back.
"""

from maestro_sdk.service.store.claims import UNDO, Claim, Kind, Store, StoreAway, Verdict
from maestro_sdk.service.store.config import StoreConfig
from maestro_sdk.service.store.memory import MemoryStore

__all__ = ["UNDO", "Claim", "Kind", "MemoryStore", "Store", "StoreAway", "StoreConfig", "Verdict"]
