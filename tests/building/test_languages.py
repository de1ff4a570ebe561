"""Captions in another language are refused: the tagger would take their function words for nouns."""

import doctest

import pytest

from tests.building.test_counting import Lines
from vqct_plugin.building import languages
from vqct_plugin.building.counting import count_captions
from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.languages import find_foreign

SENTENCES = {
    "German": [
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
        "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
        "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.",
        "Zwei Männer stehen am Herd und bereiten Essen zu.",
    ],
    "French": [
        "Deux jeunes hommes blancs sont dehors près de buissons.",
        "Une petite fille grimpe dans une maisonnette en bois.",
        "Un homme dans une chemise bleue est debout sur une échelle pour nettoyer une fenêtre.",
    ],
    "Spanish": [
        "Un hombre con una camisa azul está en una escalera limpiando la ventana.",
        "Dos hombres están en la cocina con la comida para los niños del barrio.",
        "Una niña sube a la casa de madera que hay en el jardín.",
    ],
    "Dutch": [
        "Een man in een blauw shirt staat op een ladder en maakt het raam schoon.",
        "Twee mannen staan bij het fornuis en maken eten klaar voor de kinderen.",
        "Een klein meisje klimt in een houten huis van de buren.",
    ],
    "another script": ["两个年轻的白人男子在外面靠近灌木丛。", "一个小女孩爬进木制的游戏屋。"],
}  # fmt: skip
ENGLISH = [
    "Two young, White males are outside near many bushes.",
    "A little girl climbing into a wooden playhouse.",
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "A man and a woman in an der Rohe chair at the café.",
]


@pytest.mark.parametrize("language", SENTENCES)
def test_another_language_is_recognized(language):
    assert find_foreign(SENTENCES[language] * 20) == language


@pytest.mark.parametrize(
    "captions",
    [
        ENGLISH * 20,
        ["red dog", "blue car", "green grass", "man woman", "sea"] * 50,  # keywords
        ["sunset; beach; people; water; la playa"] * 50,
        ["the petals are die-shaped and in a man on auf"] * 20,
        SENTENCES["German"][:2],  # too few to tell
        ["this flower has petals that are yellow with red lines"] * 20,
        [],
    ],
)
def test_english_and_what_cannot_be_told_is_taken(captions):
    assert find_foreign(captions) is None


def test_the_captions_of_flickr8k_are_english(flickr8k):
    captions = [line.split("\t", 1)[-1] for line in flickr8k.read_text().splitlines()[:3000]]
    assert find_foreign(captions) is None
    assert all(find_foreign(captions[start : start + 60]) is None for start in range(0, 3000, 60))


def test_they_are_refused_before_they_are_tagged(nltk_data):
    read = []

    class Endless(Lines):
        shown_name = "multi30k.de"

        def __iter__(self):
            while True:
                read.append(1)
                yield SENTENCES["German"][len(read) % 4]

    with pytest.raises(BuildError, match=r"multi30k\.de: its captions seem to be in German \('Ein .*in English"):
        count_captions([Endless([])])
    assert len(read) <= 1001


def test_all_captions_come_in_their_order():
    captions = [f"A dog number {i} on the grass" for i in range(2500)]
    assert list(languages.refuse_foreign(captions, "a")) == captions


def test_the_examples_hold():
    assert doctest.testmod(languages).failed == 0
