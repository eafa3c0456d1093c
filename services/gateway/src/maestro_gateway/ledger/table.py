"""An answer for usage as comma-separated values (RFC 4180), in pieces."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from maestro.usage.v1.usage_pb2 import UsageTotals
from maestro_gateway.ledger.query import Group, totals_of
from maestro_gateway.ledger.tally import Sums

_PIECE = 64 * 1024
_TOTALS = tuple(field.name for field in UsageTotals.DESCRIPTOR.fields)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_pieces(words: Sequence[str], rows: Iterable[tuple[Group, Sums]]) -> Iterator[bytes]:
    """The table with its header, in pieces of 64 KiB or so. A cost that is unknown is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*map(_plain, words), *_TOTALS])
    for group, sums in rows:
        writer.writerow([*map(_plain, group), *_numbers(totals_of(sums))])
        if text.tell() >= _PIECE:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _numbers(totals: UsageTotals) -> Iterator[str]:
    for name in _TOTALS:
        yield str(getattr(totals, name))


def _plain(cell: str) -> str:
    # Labels are a caller's own words: a spreadsheet must not take them for a formula.
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
