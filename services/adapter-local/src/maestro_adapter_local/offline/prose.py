"""The offline model's words: true sentences about itself and about the prompt, chosen by a digest."""

from __future__ import annotations

import re
from collections.abc import Iterator

NOTICE = "This is Maestro's offline model, not a language model."

SENTENCES = (
    "No network was used for this answer.",
    "The same request always gets the same words.",
    "A digest of the conversation chose this sentence.",
    "With another seed it may choose other sentences.",
    "Nothing here was learned from data.",
    "It is made for development without an API key.",
    "The default route prefers a real provider as soon as its key is in the environment.",
    "Streams, tools, structured answers and limits work here as they do elsewhere.",
    "Its tokens are counted, and they cost nothing.",
    "A script can replace this text, pattern by pattern.",
    "It obeys the limit of tokens and the stop texts of a request.",
    "It calls a tool when the prompt names one.",
    "It fills a JSON Schema with valid values.",
    "Ask it for a number of words, sentences or paragraphs to get a longer text.",
    "It has no opinion about the question.",
    "It understands none of what it repeats.",
    "Every test that runs against it can be repeated.",
    "It answers at once, or at the pace that its settings ask for.",
    "Its answers are meant for programs under test, not for people in need of advice.",
)
_QUOTE = 300

# Each of these is more than the model's longest answer, so what is cut here ends with LENGTH anyway.
_MOST = {"words": 10_000, "sentences": 2_000, "paragraphs": 500, "items": 2_000}

_NUMBERS = {
    word: number
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    )
} | {"twenty": 20, "fifty": 50, "hundred": 100}
_COUNT = rf"(\d{{1,5}}|{'|'.join(_NUMBERS)})"
_LENGTH = re.compile(
    rf"\b{_COUNT}[ -]?(?:\w{{1,20}} )?(words?|sentences?|paragraphs?|bullet points|bullets|points|items|lines)\b",
    re.IGNORECASE,
)
_COUNTING = re.compile(rf"\bcount (?:from {_COUNT} )?(?:up )?to {_COUNT}\b", re.IGNORECASE)
_ECHO = re.compile(
    r"\s*(?:please )?(?:say|repeat|echo|print|output|(?:reply|answer|respond)(?: with)?)"
    r"(?: (?:exactly|only|just|verbatim|back|this|the following|the words?|the text))*\s*"
    r"(?::\s*(?P<rest>\S.*)|[\"“'`](?P<quoted>.+)[\"”'`][.!]?\s*)\s*",
    re.IGNORECASE | re.DOTALL,
)
_EXACT = re.compile(
    r"\s*(?:please )?(?:say|repeat|echo|(?:reply|answer|respond) with) (?:exactly|only|just|the word) "
    r"(?P<rest>[^\"“'`:]\S*?)[.!]?\s*",
    re.IGNORECASE,
)


def asked_verbatim(question: str) -> str | None:
    """The text that the prompt asks for literally: to repeat something, or to count. None when it doesn't."""
    if found := _ECHO.fullmatch(question):
        text = found["rest"] if found["rest"] is not None else found["quoted"]
        return text.strip()
    if found := _EXACT.fullmatch(question):
        return found["rest"]
    if found := _COUNTING.search(question):
        first = _number(found[1]) if found[1] else 1
        last = min(_number(found[2]), first + 9_999)
        return ", ".join(str(number) for number in range(first, last + 1))
    return None


def asked_length(question: str) -> tuple[int, str] | None:
    """How many "words", "sentences", "paragraphs" or "items" the prompt asks for. None when it doesn't say."""
    found = _LENGTH.search(question)
    if found is None or _number(found[1]) == 0:
        return None
    unit = found[2].lower().rstrip("s")
    known = f"{unit}s" if unit in ("word", "sentence", "paragraph") else "items"
    return min(_number(found[1]), _MOST[known]), known


def written(amount: int, unit: str, digest: bytes) -> str:
    """Text of exactly `amount` words, sentences, paragraphs or list items; the notice stands at its beginning."""
    sentences = _endless(digest)
    match unit:
        case "words":
            words = NOTICE.split(" ")
            while len(words) < amount:
                words += next(sentences).split(" ")
            text = " ".join(words[:amount])
            return text if text[-1] in ".!?" else f"{text.rstrip(',;')}."
        case "sentences":
            return " ".join([NOTICE, *(next(sentences) for _ in range(amount - 1))])
        case "paragraphs":
            blocks = [" ".join(next(sentences) for _ in range(4)) for _ in range(amount)]
            return "\n\n".join([f"{NOTICE} {blocks[0]}", *blocks[1:]])
        case _:
            items = "\n".join(f"{number}. {next(sentences)}" for number in range(1, amount + 1))
            return f"{NOTICE}\n{items}"


def reply(question: str, system: str, turn: int, digest: bytes) -> str:
    """The usual answer: the notice, the question quoted, what can be said of it truthfully, and two sentences."""
    sentences = _endless(digest)
    facts = [NOTICE]
    if question:
        facts.append(f"You wrote: “{quoted(question)}”.")
        facts.append(f"That is {amount_of(len(question.split()), 'word')}.")
    else:
        facts.append("There is no text in your last turn.")
    if system:
        facts.append(f"The system text has {amount_of(len(system.split()), 'word')}.")
    if turn > 1:
        facts.append(f"This is answer {turn} of our conversation.")
    return " ".join([*facts, next(sentences), next(sentences)])


def quoted(text: str, limit: int = _QUOTE) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text[: limit * 2].split()) + ("" if len(text) <= limit * 2 else " …")
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"


def amount_of(number: int, noun: str) -> str:
    """The number with its noun: "1 word", "2 words"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _endless(digest: bytes) -> Iterator[str]:
    """Sentences without end; no two neighbours are the same."""
    count = len(SENTENCES)
    # A prime number of sentences: any stride visits all of them before one comes again.
    place, stride = digest[0] % count, 1 + digest[1] % (count - 1)
    while True:
        yield SENTENCES[place]
        place = (place + stride) % count


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _NUMBERS[text.lower()]
