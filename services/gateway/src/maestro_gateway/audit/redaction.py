"""Takes out of text what nobody should keep: addresses, numbers of cards and accounts, secrets, and what rules say.

What a rule finds is replaced by its name in brackets, as in "write to [email]". Text that holds escapes of JSON, such
as the arguments of a tool, is looked at as it stands and as it is meant. The rules that are built in take time in
proportion to the text, whatever it says; those of a configuration are held to a budget of time.
"""

from __future__ import annotations

import ipaddress
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from maestro_gateway.audit.escapes import LEVELS, Escapes, Seen
from maestro_sdk.service.audits import RuleConfig
from maestro_sdk.service.patterns import LONGEST

_BUDGET = 0.5
"""Seconds that the rules of a configuration have for one request and its answer."""
_WINDOW = 16 * 1024
_LOCAL = frozenset(string.ascii_letters + string.digits + "._%+-'")
_LOCAL_LONGEST = 64
_DIGITS = re.compile(r"[0-9]+")
_PLAIN = str.maketrans(
    {
        # Spaces and hyphens that programs set for looks, and the wide letters of East Asian texts.
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
        **dict.fromkeys("\u00ad\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **{chr(0xFF00 + code - 0x20): chr(code) for code in range(0x21, 0x7F)},
    }
)
"""Characters that only look different, each with one that rules know."""


_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]+"
)
"""Characters that nobody sees, which may stand in the middle of what rules know."""


class TooSlowError(Exception):
    """The rules of a configuration took longer than they may: nothing of the text may be kept."""


class Span(NamedTuple):
    """A find: a place in a text, and the rule that found it."""

    start: int
    end: int
    rule: str


Find: TypeAlias = Callable[[str], Iterable[tuple[int, int]]]


class Redactor:
    """The rules of one tenant, in their order: where two find the same, the earlier one has it."""

    def __init__(self, rules: Sequence[RuleConfig]) -> None:
        self._rules: list[tuple[str, Find]] = []
        self._own: list[tuple[str, re.Pattern[str]]] = []
        for rule in rules:
            if rule.pattern is not None:
                self._own.append((rule.name, re.compile(rule.pattern)))
            else:
                self._rules.append((rule.name, _FINDERS[rule.name]))

    def begin(self) -> Redaction:
        """The redaction of one request and its answer."""
        return Redaction(self._rules, self._own)


class Redaction:
    """One request and its answer. `counts` tells how often each rule found something."""

    def __init__(self, rules: Sequence[tuple[str, Find]], own: Sequence[tuple[str, re.Pattern[str]]]) -> None:
        self._rules = rules
        self._own = own
        self._left = _BUDGET
        # What names became, and how many became the same.
        self._names: dict[str, str] = {}
        self._alike: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def redact(self, text: str) -> str:
        """The text without what the rules find. Raises `TooSlowError`."""
        (found,) = self.redact_pieces([text])
        return found

    def redact_value(self, name: str, value: str) -> str:
        """The value of a member without what the rules find, where its name may tell what it is: `{"password": …}`.

        Raises `TooSlowError`.
        """
        lead = f"{name}: " if name else ""
        spans = [span for span in self._find(lead + value) if span.end > len(lead)]
        shifted = [Span(max(0, span.start - len(lead)), span.end - len(lead), span.rule) for span in spans]
        return self._replace([value], shifted)[0]

    def rename(self, name: str) -> str:
        """A name without what the rules find: the same for the same name, and another for each other one.

        Raises `TooSlowError`.
        """
        found = self._names.get(name)
        if found is None:
            found = self.redact(name)
            if found != name:
                self._alike[found] += 1
                if self._alike[found] > 1:
                    found = f"{found} {self._alike[found]}"
            self._names[name] = found
        return found

    def redact_pieces(self, pieces: Sequence[str]) -> list[str]:
        """The pieces of a text that came in pieces, without what the rules find in the whole of it.

        What takes the place of a find stands in the piece in which it begins. Raises `TooSlowError`.
        """
        return self._replace(pieces, self._find(pieces[0] if len(pieces) == 1 else "".join(pieces)))

    def _replace(self, pieces: Sequence[str], spans: Sequence[Span]) -> list[str]:
        """The pieces with the names of the rules in the place of what they found."""
        if not spans:
            return list(pieces)
        self.counts.update(span.rule for span in spans)
        whole = pieces[0] if len(pieces) == 1 else "".join(pieces)
        found: list[str] = []
        at = 0
        ahead = iter([*spans, Span(len(whole) + 1, len(whole) + 1, "")])
        span = next(ahead)
        for piece in pieces:
            end, kept = at + len(piece), list[str]()
            while at < end:
                if at < span.start:
                    stop = min(end, span.start)
                    kept.append(whole[at:stop])
                    at = stop
                else:
                    if at == span.start:
                        kept.append(f"[{span.rule}]")
                    at = min(end, span.end)
                    if at == span.end:
                        span = next(ahead)
            found.append("".join(kept))
        return found

    def _find(self, text: str) -> list[Span]:
        spans = self._look(text)
        outer: list[Escapes] = []
        # JSON within JSON is escaped once more.
        while "\\" in text and len(outer) < LEVELS and (escapes := Escapes(text)):
            if not outer:
                spans = [Span(*escapes.widened(span.start, span.end), span.rule) for span in spans]
            outer.insert(0, escapes)
            text = escapes.meant
            for span in self._look(text):
                place = span.start, span.end
                for each in outer:
                    place = each.written(place[0]), each.written(place[1])
                spans.append(Span(*place, span.rule))
        return _apart(spans) if spans else spans

    def _look(self, text: str) -> list[Span]:
        spans: list[Span] = []
        if not text.isascii():
            if (plain := text.translate(_PLAIN)) != text:
                spans = self._search_all(plain)
            if _UNSEEN.search(text) is not None:
                seen = Seen(text, _UNSEEN)
                found = self._search_all(seen.text.translate(_PLAIN))
                spans += (Span(*seen.written(start, end), rule) for start, end, rule in found if end > start)
        return spans + self._search_all(text)

    def _search_all(self, text: str) -> list[Span]:
        spans: list[Span] = []
        for name, find in self._rules:
            spans += (Span(start, end, name) for start, end in find(text))
        for name, pattern in self._own:
            spans += (Span(start, end, name) for start, end in self._search(pattern, text))
        return spans

    def _search(self, pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
        at, size = 0, len(text)
        while at < size:
            if self._left <= 0:
                raise TooSlowError
            begun = time.perf_counter()
            stop = at + _WINDOW
            found = [match.span() for match in pattern.finditer(text, at, stop + LONGEST) if match.start() < stop]
            self._left -= time.perf_counter() - begun
            yield from found
            at = max(stop, found[-1][1]) if found else stop


def _apart(spans: Sequence[Span]) -> list[Span]:
    """Spans that don't touch the same text, in order; earlier ones of the sequence win."""
    taken: list[Span] = []
    # Sorting is stable: of those that begin together the earlier rule comes first.
    for span in sorted(spans, key=lambda span: span.start):
        if taken and span.start < taken[-1].end:
            # Both go: what the second one adds must not stay.
            last = taken[-1]
            taken[-1] = Span(last.start, max(last.end, span.end), last.rule)
        else:
            taken.append(span)
    return taken


_DOMAIN = re.compile(r"@[^\W_](?:[^\W_]|-){0,62}(?:\.(?:[^\W_]|-){1,63}){1,8}")


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in _DOMAIN.finditer(text):
        start = match.start()
        while start > max(0, match.start() - _LOCAL_LONGEST) and (
            text[start - 1] in _LOCAL or text[start - 1].isalnum()
        ):
            start -= 1
        if start < match.start():
            yield start, match.end()


_CARD = re.compile(r"(?<![0-9A-Za-z])[0-9](?:[ -]?[0-9]){12,}")
_CARD_LENGTHS = range(13, 20)
_CARD_GROUP = 3
"""Digits that a group of a card's number has at least, as they are printed on cards."""


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        groups = [group.span() for group in _DIGITS.finditer(text, *match.span())]
        begin = 0
        while begin < len(groups):
            # Other numbers may stand right before and behind it.
            if (last := _card_from(text, groups, begin)) is not None:
                yield groups[begin][0], groups[last][1]
                begin = last
            begin += 1


def _card_from(text: str, groups: Sequence[tuple[int, int]], begin: int) -> int | None:
    """The last group of the longest number of a card that begins with a group."""
    found, digits = None, ""
    if text[groups[begin][0]] not in "23456":
        return None
    for place in range(begin, len(groups)):
        start, end = groups[place]
        if end - start < _CARD_GROUP or len(digits) + end - start >= _CARD_LENGTHS.stop:
            break
        digits += text[start:end]
        if len(digits) in _CARD_LENGTHS and not text[end : end + 1].isalnum() and _luhn(digits):
            found = place
    return found


_DOUBLED = str.maketrans("0123456789", "0246813579")
"""Digits times two, with both digits of what is above nine added."""


def _luhn(digits: str) -> bool:
    plain, doubled = digits[::-2], digits[-2::-2].translate(_DOUBLED)
    return (sum((plain + doubled).encode()) - ord("0") * len(digits)) % 10 == 0


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE BI",
        18: "DK FK FO GL FI NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH CR HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BY DJ FR GR IT MC MR SM",
        28: "AL AZ CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    at = 0
    while (match := _IBAN.search(text, at)) is not None:
        start = match.start()
        at = start + 1
        # Words in capitals, or another number, may stand right behind it.
        length, plain, end = _IBAN_LENGTHS.get(match[0][:2], 0), "", start
        while len(plain) < length and end < match.end():
            plain += text[end].strip()
            end += 1
        if plain and len(plain) == length and not text[end : end + 1].isalnum() and _mod_97(plain):
            yield start, end
            at = end


def _mod_97(iban: str) -> bool:
    return int("".join(str(int(letter, 36)) for letter in iban[4:] + iban[:4])) % 97 == 1


_IP4 = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")
_IP6 = re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?![0-9A-Za-z:])")


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IP4, _IP6):
        for match in pattern.finditer(text):
            if any(letter.isdecimal() for letter in match[0]):
                try:
                    ipaddress.ip_address(match[0])
                except ValueError:
                    continue
                yield match.span()


_PHONE = re.compile(
    r"(?<![0-9A-Za-z+./-])(?:"
    r"(?:\+|00)[1-9](?:[ ()./-]{0,2}[0-9]){6,14}"
    r"|\(?0[1-9][0-9]{0,4}\)?[ /-](?:[ -]?[0-9]){5,10}"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4}"
    r")(?![0-9])"
)


def _phones(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _PHONE.finditer(text))


_SECRETS = (
    re.compile(
        r"(?<![A-Za-z0-9])(?:"
        r"(?:sk|pk|rk|mk)[-_][A-Za-z0-9_-]{16,200}"
        r"|(?:AKIA|ASIA)[0-9A-Z]{16}"
        r"|gh[pousr]_[A-Za-z0-9]{20,255}"
        r"|github_pat_[A-Za-z0-9_]{20,255}"
        r"|glpat-[A-Za-z0-9_-]{16,64}"
        r"|xox[abeprs]-[A-Za-z0-9-]{10,250}"
        r"|AIza[0-9A-Za-z_-]{35}"
        r"|hf_[A-Za-z0-9]{20,64}"
        r"|eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,8000}(?:\.[A-Za-z0-9_-]{8,4000})?"
        r")"
    ),
    re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[A-Za-z0-9+/=\s\\]{0,20000}(?:-----END [A-Z ]{0,40}KEY-----)?"),
)
_NAMED = re.compile(
    r"(?i)(?:api[_-]?key|secret[_-]?key|access[_-]?key|client[_-]?secret|password|passwd|secret|token|bearer)"
    r"(?:\\?[\"'])?\s{0,4}(?:[:=]|(?<=bearer)\s)\s{0,4}(?:\\?[\"'])?([^\s\"'\\,;&<>]{8,512})"
)


def _secrets(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _SECRETS:
        yield from (match.span() for match in pattern.finditer(text))
    # The name stays: what it names goes.
    yield from (match.span(1) for match in _NAMED.finditer(text))


_FINDERS: dict[str, Find] = {
    "secret": _secrets,
    "email": _emails,
    "card": _cards,
    "iban": _ibans,
    "ip": _ips,
    "phone": _phones,
}
