"""Questions made of what captions say, with the answers that several of them agree on.

Kinds: is there a ..., how many, what colour, what is ... doing, what animal, where. Every kind is asked in several
wordings; those of UNSEEN come in no training. A question whose answer is yes of one photograph is asked of another one
where it is no, so that the words alone foretell nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from metrics import tokens

__all__ = ["KINDS", "UNSEEN", "WORDINGS", "answers", "balanced", "chances", "made_questions", "swapped"]

COLOURS = "red blue green yellow white black brown orange pink purple gray grey blond tan".split()
NUMBERS = {"one": "one", "two": "two", "three": "three", "four": "four", "five": "five", "2": "two", "3": "three"}
ANIMALS = "dog cat horse bird cow sheep bear deer camel duck goat puppy".split()
PEOPLE = "man woman boy girl child person people men women children lady guy kid baby toddler dog dogs".split()
PLACES = {
    "snow": "snow", "beach": "beach", "grass": "grass", "water": "water", "street": "street", "pool": "pool",
    "field": "field", "park": "park", "ocean": "ocean", "lake": "lake", "forest": "forest", "woods": "forest",
    "mountain": "mountain", "mountains": "mountain", "sidewalk": "street", "river": "river", "desert": "desert",
    "city": "city", "road": "road", "sand": "sand",
}  # fmt: skip
THINGS = (
    "dog cat horse bird ball bicycle boat car truck bus tree fence wall bench chair table hat helmet camera guitar "
    "skateboard surfboard snowboard swing slide rope stick toy frisbee tent umbrella sign bridge rock building crowd "
    "man woman boy girl baby water snow beach grass motorcycle kayak tunnel stage sunglasses jacket pool mountain shirt dress "
    "bag basketball football soccer net pole ladder fire fountain waterfall river lake ocean road street sidewalk hill cliff "
    "mud sand leaf flower plant log fish goat cow sheep scooter train store restaurant city kitchen bed couch book "
    "cup bottle food cake door window floor dirt sky sun race game ramp rail trampoline wheel flag costume mask"
).split()
KNOWN = frozenset(THINGS)
SEVERAL = {"men": "man", "women": "woman", "leaves": "leaf", "bike": "bicycle", "bikes": "bicycle"}
PLURALS = ("s", "men", "ren", "people")
NOT_DOING = "wearing during morning evening building clothing something nothing string ring spring king thing being having".split()
WORDINGS = {
    "is there": [
        "is there a {} in the picture?", "can you see a {}?", "does the picture show a {}?", "is there a {}?",
        "do you see a {}?", "is a {} in this photo?", "a {}, is there one?", "does this show a {}?", "is a {} here?",
    ],
    "how many": [
        "how many {} are there?", "how many {} are in the picture?", "how many {} do you see?", "count the {}",
        "how many {} can be seen?", "what is the number of {}?",
    ],
    "colour": [
        "what colour is the {}?", "what color is the {}?", "which colour does the {} have?", "what is the color of the {}?",
        "the color of the {}?", "the {} is of what color?",
    ],
    "doing": [
        "what is the {} doing?", "what does the {} do?", "what is the {} up to?", "what is going on with the {}?",
        "what is the {} busy doing?", "what activity is the {} busy with?",
    ],
    "animal": [
        "what animal is this?", "which animal is in the picture?", "which animal is it?", "what animal can you see?",
        "what kind of animal do you see?",
    ],
    "where": [
        "where is this?", "where was the picture taken?", "what place is this?", "where are they?", "what is the place?",
        "in what surroundings is this?",
    ],
}  # fmt: skip
UNSEEN = {kind: wordings[-1] for kind, wordings in WORDINGS.items()}
KINDS = tuple(WORDINGS)
SHARES = {
    "is there": 0.35,
    "colour": 0.18,
    "doing": 0.16,
    "where": 0.12,
    "how many": 0.11,
    "animal": 0.08,
}  # of training


def common(words: Counter[str], least: int = 2) -> str | None:
    """The word that most captions have, where at least so many do and no other has as many."""
    ranked = words.most_common(2)
    if not ranked or ranked[0][1] < least or (len(ranked) > 1 and ranked[1][1] == ranked[0][1]):
        return None
    return ranked[0][0]


def after(following: str) -> bool:
    """Whether a word that follows a colour may be what has it."""
    return following not in COLOURS and following not in ("and", "or", "is", "are", "in", "on") and len(following) > 2


def answers(captions: Sequence[str]) -> list[tuple[str, str, str]]:
    """(kind, what it is about, answer) of what at least two of a photograph's captions say."""
    words = [tokens(caption) for caption in captions]
    found: list[tuple[str, str, str]] = []
    colours: dict[str, Counter[str]] = {}
    numbers: dict[str, Counter[str]] = {}
    doing: dict[str, Counter[str]] = {}
    for line in words:  # each caption says a thing once, however often it has the word
        pairs = set(itertools.pairwise(line))
        for about, colour in {(b, {"grey": "gray"}.get(a, a)) for a, b in pairs if a in COLOURS and after(b)}:
            colours.setdefault(about, Counter())[colour] += 1
        for about, number in {(b, NUMBERS[a]) for a, b in pairs if a in NUMBERS and b.endswith(PLURALS)}:
            numbers.setdefault(about, Counter())[number] += 1
        verbs = [w for w in line if w.endswith("ing") and w not in NOT_DOING and len(w) > 4]
        who = [w for w in line if w in PEOPLE]
        if verbs and who:
            doing.setdefault(who[0], Counter())[verbs[0]] += 1
    for kind, table in (("colour", colours), ("how many", numbers), ("doing", doing)):
        for about, counts in table.items():
            if answer := common(counts):
                found.append((kind, about, answer))
    sets = [set(line) for line in words]
    animals = Counter(
        next(a for a in ANIMALS if {a, f"{a}s"} & s) for s in sets if any({a, f"{a}s"} & s for a in ANIMALS)
    )
    places = Counter(place for s in sets for place in {PLACES[p] for p in PLACES if p in s})
    for kind, counts in (("animal", animals), ("where", places)):
        if answer := common(counts, 3 if kind == "animal" else 2):
            found.append((kind, "", answer))
    return found


def thing_named(word: str) -> str:
    """Of one of THINGS, in any number; other words as they are."""
    if word in KNOWN:
        return word
    return next((one for one in (SEVERAL.get(word), word[:-1], word[:-2], word[:-3] + "y") if one in KNOWN), word)


def shows(captions: Sequence[str]) -> tuple[set[str], set[str]]:
    """Things that two captions name, and those that any names, in any number."""
    counts = Counter(thing for caption in captions for thing in {thing_named(w) for w in tokens(caption)} & KNOWN)
    return {thing for thing, count in counts.items() if count > 1}, set(counts)


def made_questions(
    captions: Sequence[Sequence[str]], rng: np.random.Generator, unseen: bool = False
) -> list[tuple[int, str, str, str]]:
    """(photograph, kind, question, answer) about photographs with these captions, in the wordings of training or in the
    one that it never has."""

    def words(kind: str, about: str) -> str:
        known = [w for w in WORDINGS[kind] if w != UNSEEN[kind]]
        return (UNSEEN[kind] if unseen else known[rng.integers(len(known))]).format(about)

    rows = []
    named = [shows(lines) for lines in captions]
    for at, lines in enumerate(captions):
        rows += [(at, kind, words(kind, about), answer) for kind, about, answer in answers(lines)]
        for thing in sorted(named[at][0]):
            other = int(rng.integers(len(captions)))
            if rng.random() < 0.5 and thing not in named[other][1]:
                rows.append((at, "is there", words("is there", thing), "yes"))
                rows.append((other, "is there", words("is there", thing), "no"))
    return rows


def chances(rows: Sequence[tuple[int, str, str, str]]) -> np.ndarray:
    """How often each question is to be asked in training (n,), sum 1: kinds by their shares, of each kind rare answers
    oftener than there are."""
    counts = Counter((kind, answer) for _, kind, _, answer in rows)
    weights = np.array([counts[kind, answer] ** -0.5 for _, kind, _, answer in rows])
    kinds = np.array([kind for _, kind, *_ in rows])
    for kind, share in SHARES.items():
        weights[kinds == kind] *= share / max(weights[kinds == kind].sum(), 1e-9)
    return weights / weights.sum()


def balanced(rows: Sequence[tuple[int, str, str, str]], rng: np.random.Generator) -> list[tuple[int, str, str, str]]:
    """Questions of one kind, of the commonest answer no more than of all the others."""
    answer, count = Counter(row[3] for row in rows).most_common(1)[0]
    common = [at for at, row in enumerate(rows) if row[3] == answer]
    left = set(rng.permutation(common)[: max(0, 2 * count - len(rows))].tolist())
    return [row for at, row in enumerate(rows) if at not in left]


ACTIONS = "running walking sitting standing jumping playing riding swimming climbing sleeping eating dancing".split()
SAME = {"gray": ("grey",), "grey": ("gray",), "street": ("road",), "road": ("street",), "hill": ("mountain",),
        "mountain": ("hill",), "lake": ("water",), "ocean": ("water",), "river": ("water",)}  # fmt: skip
SWAPS = (COLOURS, ["one", "two", "three", "four", "five"], THINGS, ACTIONS)


def swapped(caption: str, rng: np.random.Generator) -> str | None:
    """The caption with one word for another of its kind: a colour, a number, a thing, an action; None where it has
    none."""
    words = tokens(caption)
    places = [(at, kind) for at, word in enumerate(words) for kind in SWAPS if word in kind]
    if not places:
        return None
    at, kind = places[rng.integers(len(places))]
    others = [word for word in kind if word not in words and word not in SAME.get(words[at], ())]
    return " ".join([*words[:at], str(rng.choice(others)), *words[at + 1 :]])
