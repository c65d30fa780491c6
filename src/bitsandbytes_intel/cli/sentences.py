"""The text that ``python -m bitsandbytes_intel model`` runs on: sentences in groups of one topic each."""

from __future__ import annotations

GROUPS: dict[str, tuple[str, ...]] = {
    "weather": (
        "It has been raining since early this morning.",
        "Heavy showers are expected along the coast tonight.",
        "The forecast promises a dry and sunny weekend.",
        "A cold wind from the north brought the first snow of the year.",
    ),
    "cooking": (
        "Simmer the tomatoes with garlic and basil for half an hour.",
        "She kneaded the dough and left it to rise under a cloth.",
        "Add a pinch of salt before the water boils.",
        "The soup tastes better when the onions are browned slowly in butter.",
    ),
    "space": (
        "The probe sent its first pictures of the planet's rings.",
        "Astronomers have found water vapour around a distant star.",
        "The crew returned safely after six months on the space station.",
        "A telescope on the mountain follows asteroids that come near the Earth.",
    ),
    "money": (
        "The central bank raised interest rates by a quarter of a point.",
        "Share prices fell after the company published its annual results.",
        "He pays his rent by bank transfer on the first of each month.",
        "Inflation slowed down in spring, but food is still dear.",
    ),
    "football": (
        "The goalkeeper saved a penalty in the last minute.",
        "Their new striker scored twice in the second half.",
        "The match ended in a draw after extra time.",
        "Thousands of fans filled the stadium for the final.",
    ),
    "software": (
        "The program crashes when the input file is empty.",
        "I fixed the bug and added a test for it.",
        "Compiling the whole project takes about two minutes.",
        "The new release reads its settings from environment variables, and its log says which of them it has found.",
    ),
}
ONE_WORD = "Rain"
