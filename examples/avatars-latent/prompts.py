"""Prompts of a small closed vocabulary: a face's attributes as a sentence, and a sentence as token ids.

`vocab.txt` is in WordPiece's format, one token a line, its line its id. Every word and the comma are tokens of their own, so
parting them is all there is to the tokenizer, and a bundle with this vocabulary makes the same ids of a text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

LENGTH = 32  # tokens of a prompt: the longest sentence has 19 words, 8 commas, a beginning and an end
VOCABULARY: dict[str, int] = {
    token: index for index, token in enumerate(Path(__file__).with_name("vocab.txt").read_text(encoding="utf-8").split())
}
PAD, UNKNOWN, BEGIN, END = (VOCABULARY[f"[{name}]"] for name in ("PAD", "UNK", "CLS", "SEP"))

TOLD = ("hair", "glasses", "beard", "skin")  # what a picture is looked at for (benchmarks/quality/prompts.py)
# Cuts with a name of their own; the other styles are adjectives of "hair".
CUTS = frozenset({"quiff", "mohawk", "afro", "bun", "pixie", "bob"})
HATS = frozenset({"beanie", "turban"})
PHRASES = {
    "skin": "{} skin",
    "background": "{} background",
    "clothing_color": "{} hoodie",
    "eyebrows": "{} eyebrows",
    "glasses": {"none": "no glasses", "glasses": "glasses", "sunglasses": "sunglasses"},
    "mouth": {"smile": "smiling", "grin": "grinning", "serious": "serious", "open": "open mouth"},
    "eyes": {"open": "open eyes", "happy": "happy eyes", "surprised": "surprised eyes", "wink": "winking"},
}


def encode(prompt: str) -> np.ndarray:
    """Token ids of a prompt, int64 [LENGTH], between beginning and end and padded. ValueError: more than LENGTH tokens.

    A word that is not in the vocabulary becomes [UNK], which the network was taught to ignore. "" is the null of guidance.
    """
    words = prompt.lower().replace(",", " , ").split()
    if len(words) > LENGTH - 2:
        raise ValueError(f"the prompt has {len(words)} words and commas, expected at most {LENGTH - 2}: leave some out")
    tokens = np.full(LENGTH, PAD, dtype=np.int64)
    tokens[: len(words) + 2] = [BEGIN, *(VOCABULARY.get(word, UNKNOWN) for word in words), END]
    return tokens


def decode(tokens: np.ndarray) -> str:
    """The prompt of token ids [LENGTH]."""
    names = list(VOCABULARY)
    return " ".join(names[token] for token in tokens if token not in (PAD, BEGIN, END)).replace(" ,", ",")


def describe(face: dict[str, str], rng: np.random.Generator) -> str:
    """A sentence about a face (attribute -> category): "long red hair, glasses, smiling".

    Half of the sentences tell everything, the others leave out attributes, up to all but one. Neighbouring phrases change
    places, and colours or styles of hair may go untold.
    """
    phrases = [_hair(face, rng), _beard(face, rng)]
    for name, wording in PHRASES.items():
        category = face[name]
        phrases.append(wording[category] if isinstance(wording, dict) else wording.format(category))
    told = 1.0 if rng.random() < 0.5 else rng.uniform(0.1, 0.9)
    keep = rng.random(len(phrases)) < told
    keep[rng.integers(len(phrases))] = True
    order = np.argsort(np.arange(len(phrases)) + rng.uniform(0, 4, len(phrases)))
    return ", ".join(phrases[index] for index in order if keep[index])


def _hair(face: dict[str, str], rng: np.random.Generator) -> str:
    """What is on the head; one time in five each without its style and without its colour."""
    style, told = face["hair"], rng.random()
    if style == "bald":
        return style
    if style in HATS:
        return style if told < 0.4 else f"{face['clothing_color']} {style}"
    color = _hair_color(face)
    if told < 0.2:
        return f"{color} hair"
    if style in CUTS:
        return style if told < 0.4 else f"{color} {style}"
    return f"{style} hair" if told < 0.4 else f"{style} {color} hair"


def _beard(face: dict[str, str], rng: np.random.Generator) -> str:
    """Facial hair, half of the time with its colour, which is that of the hair."""
    told = rng.random()
    if face["beard"] == "none":
        return "no beard"
    return face["beard"] if told < 0.5 else f"{_hair_color(face)} {face['beard']}"


def _hair_color(face: dict[str, str]) -> str:
    """The colour of hair and beard as it is told."""
    color = face["hair_color"]
    return "red" if color == "ginger" else color


def told(face: dict[str, str], sentence: str) -> frozenset[str]:
    """Which of TOLD a sentence about a face says."""
    words = set(sentence.replace(",", " ").split())
    said = {
        "hair": {face["hair"]}, "glasses": {"glasses", "sunglasses"}, "beard": {"beard", "moustache"}, "skin": {"skin"},
    }  # fmt: skip
    return frozenset(name for name, any_of in said.items() if words & any_of)
