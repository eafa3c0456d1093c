"""BERT's words: a text is cleaned, split at blanks and punctuation, and each word into the longest known pieces."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

_LONGEST_WORD = 100
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# Blocks of signs that are words of their own; kana and hangul are not among them, as BERT has it.
_IDEOGRAPHS = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)


class WordPiece:
    """The numbers of a text's pieces, between those of `[CLS]` and `[SEP]`."""

    def __init__(
        self, vocabulary: Mapping[str, int], *, lowercase: bool = True, strip_accents: bool | None = None
    ) -> None:
        """`strip_accents` None means: where case is folded. Raises `ValueError` when a special piece is missing."""
        missing = [piece for piece in _SPECIAL if piece not in vocabulary]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self._vocabulary = vocabulary
        self._lowercase = lowercase
        self._strip = lowercase if strip_accents is None else strip_accents
        self.padding = vocabulary["[PAD]"]
        self._unknown = vocabulary["[UNK]"]
        self._first, self._last = vocabulary["[CLS]"], vocabulary["[SEP]"]

    def encode(self, text: str) -> list[int]:
        """All of the text, however long."""
        pieces = [piece for word in split_words(self._clean(text)) for piece in self._pieces(word)]
        return [self._first, *pieces, self._last]

    @property
    def size(self) -> int:
        """One more than the largest number."""
        return max(self._vocabulary.values()) + 1

    def cut(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` numbers of a text; the last one stays `[SEP]`."""
        return list(ids) if len(ids) <= most else [*ids[: most - 1], self._last]

    def _clean(self, text: str) -> str:
        kept: list[str] = []
        for letter in text:
            code = ord(letter)
            if code in {0, 0xFFFD} or _is_control(letter):
                continue
            if any(begin <= code <= end for begin, end in _IDEOGRAPHS):
                kept.append(f" {letter} ")
            else:
                kept.append(" " if letter.isspace() else letter)
        clean = "".join(kept)
        if self._strip:
            apart = unicodedata.normalize("NFD", clean)
            clean = "".join(letter for letter in apart if unicodedata.category(letter) != "Mn")
        return clean.lower() if self._lowercase else clean

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        found: list[int] = []
        begin = 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = self._vocabulary.get(f"##{word[begin:end]}" if begin else word[:end])
                if piece is not None:
                    found.append(piece)
                    begin = end
                    break
            else:
                return [self._unknown]
        return found


def split_words(text: str) -> list[str]:
    """Words and single punctuation marks."""
    words: list[str] = []
    for chunk in text.split():
        begin = 0
        for place, letter in enumerate(chunk):
            if is_punctuation(letter):
                words += [chunk[begin:place], letter]
                begin = place + 1
        words.append(chunk[begin:])
    return [word for word in words if word]


def is_punctuation(letter: str) -> bool:
    """What stands alone: Unicode's punctuation, and every other ASCII sign such as `$`."""
    code = ord(letter)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(letter).startswith("P")


def load_wordpiece(folder: Path) -> WordPiece:
    """The words of a model's folder: `tokenizer.json`, else `vocab.txt`. Raises `ValueError`, or `OSError`."""
    file = folder / "tokenizer.json"
    if file.exists():
        return _from_json(json.loads(file.read_text(encoding="utf-8")), file)
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines) if line}
    config = folder / "tokenizer_config.json"
    told: Any = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    return WordPiece(
        vocabulary, lowercase=bool(told.get("do_lower_case", True)), strip_accents=told.get("strip_accents")
    )


def _from_json(document: Any, file: Path) -> WordPiece:
    try:
        model = document["model"]
        normalizer: Any = document.get("normalizer") or cast("Any", {})
        kind = model.get("type", "WordPiece")
        if kind != "WordPiece" or normalizer.get("type", "BertNormalizer") != "BertNormalizer":
            raise ValueError(f"{file}: its words are made by {kind}; only BERT's WordPiece is known here")
        vocabulary = cast("Mapping[str, int]", model["vocab"])
        lowercase = bool(normalizer.get("lowercase", True))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} can't be read: {error!r}") from error
    return WordPiece(vocabulary, lowercase=lowercase, strip_accents=normalizer.get("strip_accents"))


def _is_control(letter: str) -> bool:
    if letter in "\t\n\r":
        return False
    return unicodedata.category(letter) in {"Cc", "Cf", "Cn", "Co", "Cs"}
