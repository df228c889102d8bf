"""Sentences for the embedded recogniser: digit strings, commands of a small grammar, names of devices, plain short sentences."""

from __future__ import annotations

import random
from collections.abc import Callable

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NUMBERS = [*DIGITS[1:], "ten", "fifteen", "twenty", "thirty", "forty", "fifty"]
WAKE = [
    "alexa",
    "computer",
    "jarvis",
    "smart mirror",
    "snowboy",
    "view glass",
    "amelia",
    "athena",
    "hey computer",
    "hey chatterbox",
]
NAMES = ["anna", "peter", "maria", "thomas", "julia", "martin", "helen", "robert", "laura", "daniel", "emma", "victor"]
ROOMS = ["kitchen", "bedroom", "living room", "garden", "office", "garage", "bathroom", "hall"]
THINGS = ["light", "lamp", "heater", "fan", "radio", "television", "alarm", "door", "window", "camera"]
MUSIC = ["jazz", "rock music", "piano music", "the news", "a story", "my favourite song", "classical music"]
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tomorrow"]
PLACES = ["the station", "the airport", "the school", "the hospital", "the market", "the museum", "home"]
DRINKS = ["coffee", "tea", "water", "orange juice", "hot chocolate"]
KEYWORDS = sorted(
    {
        *NAMES,
        *MUSIC,
        *(w for w in WAKE if " " not in w),
        "kitchen",
        "bedroom",
        "garage",
        "television",
        "camera",
        "museum",
        "airport",
    }
)

PEOPLE = [
    "i",
    "you",
    "we",
    "they",
    "she",
    "he",
    "my brother",
    "her sister",
    "the teacher",
    "the children",
    "mary",
    "the old man",
]
DID = ["saw", "bought", "wanted", "liked", "found", "lost", "took", "made", "needed", "forgot"]
OBJECTS = [
    "the book",
    "a red car",
    "some bread",
    "the letter",
    "two apples",
    "a small house",
    "the answer",
    "a good friend",
    "the money",
    "a new coat",
    "the picture",
    "some milk",
    "his name",
    "the last train",
    "a long walk",
    "the big dog",
]
WHEN = [
    "today",
    "yesterday",
    "in the morning",
    "at night",
    "last week",
    "after school",
    "again",
    "every day",
    "before dinner",
    "too late",
]
PLAIN = [
    "it is very good",
    "what do you want",
    "i do not know",
    "there is no room here",
    "this is my friend",
    "look at that house",
    "where are you going",
    "can you tell me the way",
    "he was not at home",
    "we will see you there",
    "she went out with them",
    "that would be a good time",
    "i shall never do it",
    "have you seen my bag",
    "they were here all day",
    "let us go to work",
]


def digits(rng: random.Random) -> str:
    """One to nine digits."""
    return " ".join(rng.choice(DIGITS) for _ in range(rng.randint(1, 9)))


def grid(rng: random.Random) -> str:
    """The GRID corpus's grammar: verb colour preposition letter digit adverb."""
    letters = "abcdefghijklmnopqrstuvxyz"
    return " ".join(
        [
            rng.choice(["bin", "lay", "place", "set"]),
            rng.choice(["blue", "green", "red", "white"]),
            rng.choice(["at", "by", "in", "with"]),
            rng.choice(letters),
            rng.choice(DIGITS),
            rng.choice(["again", "now", "please", "soon"]),
        ]
    )


def command(rng: random.Random) -> str:
    """An order to a device at home."""
    c, n = rng.choice, rng.choice(NUMBERS)
    made = c(
        [
            f"turn {c(['on', 'off'])} the {c(THINGS)} in the {c(ROOMS)}",
            f"switch {c(['on', 'off'])} the {c(ROOMS)} {c(THINGS)}",
            f"set a timer for {n} {c(['minutes', 'seconds', 'hours'])}",
            f"set the {c(THINGS)} to {n}",
            f"play {c(MUSIC)} in the {c(ROOMS)}",
            f"call {c(NAMES)} at {c(['home', 'work'])}",
            f"send a message to {c(NAMES)}",
            f"what is the weather on {c(DAYS)}",
            f"remind me to call {c(NAMES)} {c(['on ' + c(DAYS[:7]), 'tomorrow'])}",
            f"take me to {c(PLACES)}",
            f"how far is {c(PLACES)}",
            f"open the {c(['door', 'window', 'garage'])}",
            f"close the {c(['door', 'window', 'garage'])} please",
            f"order {c(['a large', 'a small', 'one', 'two'])} {c(DRINKS)} for {c(NAMES)}",
            f"play {c(MUSIC)} for {n} minutes",
            f"is the {c(THINGS)} in the {c(ROOMS)} {c(['on', 'off'])}",
            f"wake me at {c(NUMBERS[:12])} on {c(DAYS[:7])}",
        ]
    )
    return f"{c(WAKE)} {made}" if rng.random() < 0.2 else made


def plain(rng: random.Random) -> str:
    """Short everyday words in short sentences."""
    if rng.random() < 0.3:
        return rng.choice(PLAIN)
    return f"{rng.choice(PEOPLE)} {rng.choice(DID)} {rng.choice(OBJECTS)} {rng.choice(WHEN)}"


KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    "digits": (0.25, digits),
    "grid": (0.2, grid),
    "command": (0.4, command),
    "plain": (0.15, plain),
}


def draw(rng: random.Random) -> tuple[str, str]:
    """A kind and a sentence of it."""
    kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
    return kind, KINDS[kind][1](rng)
