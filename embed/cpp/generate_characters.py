"""What BERT's normaliser makes of each character, for C++: src/characters.h, written from Python's unicodedata.

Run from anywhere as `python embed/cpp/generate_characters.py`; tests compare what is committed with what this writes, and
every character with the library `tokenizers`. C++ refuses characters outside of BLOCKS. In these each character becomes at
most one other, whatever stands beside it, and the library, whose tables are older, has it as Unicode has it. Hangul, of
which one character becomes several, is arithmetic in C++.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).resolve().parent / "src" / "characters.h"
BLOCKS = (
    (0x0000, 0x052F),  # Latin, phonetic letters, combining marks, Greek, Cyrillic
    (0x1E00, 0x1EFF),  # more of Latin: Vietnamese
    (0x2000, 0x206F),  # punctuation, spaces, what joins emoji
    (0x20A0, 0x20BF),  # currencies
    (0x2600, 0x27BF),  # symbols
    (0x3000, 0x30FF),  # Chinese and Japanese punctuation, kana
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF),  # ideographs
    (0xAC00, 0xD7A3),  # Hangul
    (0xFE00, 0xFE0F),  # variants of emoji
    (0xFF01, 0xFF65),  # wide letters and punctuation
    (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF),  # emoji
    (0x20000, 0x2A6DF),  # more ideographs
)  # fmt: skip
IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x2A6DF))  # each is a word; code points that are none yet too
SYMBOLS = ((0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF))
SPACE, DROPPED, ALONE, LETTER = "kSpace", "kDropped", "kAlone", "kLetter"
HEADER = """\
// What becomes of the characters of a text. Written by embed/cpp/generate_characters.py: change it there.
#ifndef DIFFUSEVAE_CHARACTERS_H
#define DIFFUSEVAE_CHARACTERS_H

#include <cstdint>

namespace diffusevae {{

// What it is: a space between words, nothing, a word by itself, or a part of one. Characters in no run are refused.
enum class CharacterKind : uint8_t {{ kSpace, kDropped, kAlone, kLetter }};
struct KindRun {{ uint32_t first, last; CharacterKind kind; }};

// first, first + stride, .. last without capitals and accents: to, to + slope, .. where slope is 0 or stride; 0: nothing.
struct FoldRun {{ uint32_t first, last, to; uint8_t stride, slope; }};

constexpr KindRun kKinds[] = {{
{kinds}
}};

constexpr FoldRun kFolds[] = {{
{folds}
}};

}}  // namespace diffusevae

#endif  // DIFFUSEVAE_CHARACTERS_H
"""


def within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether a character lies in one of these ranges."""
    return any(first <= code <= last for first, last in ranges)


def kind(code: int) -> str | None:
    """What a character is, None where that is not settled: it is not assigned."""
    text = chr(code)
    category = unicodedata.category(text)
    if within(code, IDEOGRAPHS):
        return ALONE
    if category == "Cn" and not within(code, SYMBOLS):
        return None
    if text in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return SPACE
    if code in (0, 0xFFFD) or category in ("Cc", "Cf", "Co"):
        return DROPPED
    return ALONE if category[0] == "P" or (code < 0x80 and category[0] == "S") else LETTER


def folded(code: int) -> int:
    """A character without capital and accents, 0 where nothing stays; itself where more than one does: Hangul."""
    parts = [part for part in unicodedata.normalize("NFD", chr(code)) if unicodedata.category(part) != "Mn"]
    kept = "".join(part.lower() for part in parts)
    return ord(kept) if len(kept) == 1 else 0 if not kept else code


def characters() -> list[int]:
    """Those that C++ takes."""
    return [code for first, last in BLOCKS for code in range(first, last + 1) if kind(code) is not None]


def kind_runs() -> Iterator[tuple[int, int, str]]:
    """(first, last, kind) of characters of one kind that stand side by side."""
    known = characters()
    first = known[0]
    for code, following in zip(known, [*known[1:], None], strict=True):
        if following != code + 1 or kind(following) != kind(code):
            yield first, code, str(kind(code))
            first = following or 0


def length(changed: dict[int, int], code: int, stride: int, slope: int) -> int:
    """How many characters from this one on a run of this stride and slope holds."""
    count = 0
    while changed.get(code + count * stride) == changed[code] + count * slope and not any(
        code + count * stride - skipped in changed for skipped in range(1, stride) if count
    ):
        count += 1
    return count


def fold_runs() -> Iterator[tuple[int, int, int, int, int]]:
    """(first, last, to, stride, slope), of each character that changes."""
    stays = [code for code in characters() if kind(code) in (ALONE, LETTER)]
    changed = {code: folded(code) for code in stays if folded(code) != code}
    behind = 0
    for code, to in changed.items():
        if code < behind:
            continue
        shapes = ((1, 0), (1, 1), (2, 2), (2, 0))
        count, stride, slope = max(((length(changed, code, *shape), *shape) for shape in shapes), key=lambda run: run[0])
        behind = code + (count - 1) * stride + 1
        yield code, behind - 1, to, stride, slope


def wrapped(rows: list[str]) -> str:
    """Rows of a table, as many as fit on each line."""
    lines = textwrap.wrap(", ".join(row.replace(" ", "\0") for row in rows) + ",", 121)
    return "\n".join("    " + line.replace("\0", " ") for line in lines)


def header() -> str:
    """The text of characters.h."""
    kinds = [f"{{{first:#x}, {last:#x}, CharacterKind::{kind}}}" for first, last, kind in kind_runs()]
    folds = [f"{{{first:#x}, {last:#x}, {to:#x}, {stride}, {slope}}}" for first, last, to, stride, slope in fold_runs()]
    return HEADER.format(kinds=wrapped(kinds), folds=wrapped(folds))


if __name__ == "__main__":
    FILE.write_text(header(), encoding="utf-8")
