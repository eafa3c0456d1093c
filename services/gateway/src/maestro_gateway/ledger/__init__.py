"""The ledger: what every request used and cost, read from the stream that holds the ends of all requests."""

from __future__ import annotations

from maestro_gateway.ledger.book import Ledger
from maestro_gateway.ledger.stream import STREAM, ensure_ledger
from maestro_gateway.ledger.tally import Row, Sums, Tally
from maestro_gateway.ledger.usage import Usage

__all__ = ["STREAM", "Ledger", "Row", "Sums", "Tally", "Usage", "ensure_ledger"]
