"""Captions in another language are refused: the tagger would take their function words for nouns."""

import doctest
import io
import logging

import pytest

from tests.building.test_captions import written
from tests.building.test_counting import Lines
from vqct_plugin.building import languages
from vqct_plugin.building.build import build_prior
from vqct_plugin.building.captions import Captions
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
    "Turkish": [
        "Mavi gömlekli bir adam merdivende duruyor ve pencereyi temizliyor.",
        "Küçük bir çocuk ahşap evin içinde ve gülüyor.",
        "Bir köpek çimlerin üzerinde koşuyor ve bir kedi ile oynuyor.",
    ],
    "Polish": [
        "Mężczyzna w niebieskiej koszuli stoi na drabinie i czyści okno.",
        "Mała dziewczynka wchodzi do drewnianego domku z psem.",
        "Dwóch młodych mężczyzn jest na zewnątrz w pobliżu krzaków.",
    ],
    "another script": ["两个年轻的白人男子在外面靠近灌木丛。", "一个小女孩爬进木制的游戏屋。"],
}  # fmt: skip
#: without a list of their own
OTHERS = {
    "Finnish": [
        "Mies ja nainen ovat rannalla koiran kanssa.",
        "Pieni tyttö on puisessa leikkimökissä ja katsoo ikkunasta.",
        "Sinipaitainen mies seisoo tikkailla ja pesee ikkunaa.",
    ],
    "Czech": [
        "Muž v modré košili stojí na žebříku a čistí okno.",
        "Malá holčička leze do dřevěného domku a její pes to vidí.",
        "Pes běží po trávě a chytá míč, je to on.",
    ],
    "Hungarian": [
        "Egy férfi kék ingben áll egy létrán és ablakot tisztít.",
        "A kislány bemászik a fából készült házba, és a kutya is.",
        "A kutya a fűben fut és elkapja a labdát.",
    ],
    "Romanian": [
        "Un bărbat într-o cămașă albastră stă pe o scară și curăță o fereastră.",
        "O fetiță urcă într-o căsuță de lemn a familiei.",
        "Un câine aleargă pe iarbă cu o minge în gură.",
    ],
    "Vietnamese": [
        "Một người đàn ông mặc áo xanh đang đứng trên thang lau cửa sổ.",
        "Một bé gái đang trèo vào ngôi nhà gỗ.",
        "Con chó chạy trên cỏ và bắt quả bóng.",
    ],
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


def folder_of_six(tmp_path, sentences):
    for number in range(5):
        lines = [line.replace("man", f"man number {number}{i}") for i in range(15) for line in ENGLISH]
        written(tmp_path, "\n".join(lines), f"folder/{number}.txt")
    written(tmp_path, "\n".join(sentences * 20), "folder/five_of_them.txt")
    return tmp_path / "folder"


def test_one_file_of_another_language_is_refused_by_name_when_its_folder_is_opened(tmp_path):
    sentence = r"captions in folder/five_of_them\.txt: its captions seem to be in German \('Zwei junge .*in English"
    with pytest.raises(BuildError, match=sentence):
        Captions(folder_of_six(tmp_path, SENTENCES["German"]))


@pytest.mark.parametrize("language", OTHERS)
def test_one_file_with_few_english_words_is_warned_of_by_name_with_its_share(tmp_path, language, caplog):
    assert find_foreign(OTHERS[language] * 20) is None
    Captions(folder_of_six(tmp_path, OTHERS[language]))
    (message,) = caplog.messages
    assert message.startswith("captions in folder: few of their first words are English function words such as the, ")
    assert ": five_of_them.txt (0.0%); English captions have" in message


def test_many_such_files_are_one_warning_and_small_files_are_told_together(tmp_path, caplog):
    for number in range(5):
        text = "\n".join(f"{line} {number} {i}" for i in range(20) for line in OTHERS["Finnish"])
        written(tmp_path, text, f"folder/{number}.txt")
    Captions(tmp_path / "folder")
    (message,) = caplog.messages
    assert ": 0.txt (0.0%), 1.txt (0.0%), 2.txt (0.0%) and 2 files more; English" in message
    caplog.clear()
    for number in range(40):
        written(tmp_path, "\n".join(OTHERS["Finnish"]), f"small/{number}.txt")
    Captions(tmp_path / "small")
    (message,) = caplog.messages
    assert "captions in small: few of their first words" in message
    assert "with: 0.0%; English" in message


def test_english_and_a_few_words_are_not_warned_of(tmp_path, caplog, flickr8k):
    caplog.set_level(logging.INFO)
    Captions(folder_of_six(tmp_path, ENGLISH[:2]))
    Captions(flickr8k)
    Captions(written(tmp_path, "\n".join(OTHERS["Finnish"])))
    assert not caplog.messages


def test_standard_input_is_judged_too(monkeypatch, caplog):
    def read(sentences):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(sentences * 20).encode())))
        return list(Captions("-"))

    with pytest.raises(BuildError, match=r"captions in standard input: its captions seem to be in German"):
        read(SENTENCES["German"])
    assert len(read(OTHERS["Finnish"])) == 60
    assert "captions in standard input: few of their first words" in caplog.messages[0]


@pytest.mark.usefixtures("nltk_data")
def test_english_is_said_where_it_is_assumed(tmp_path, tiny_bert):
    path = written(tmp_path, "A red dog on the grass .\nA black cat on the grass .\n")
    report = build_prior(tiny_bert, [path], min_count=0)
    assert report.prior.provenance["language"] == "English (assumed)"
    assert "\nlanguage: English (assumed)\n" in str(report)


@pytest.mark.parametrize(
    "lines",
    [
        [
            "man in blue shirt",
            "boy in pool",
            "dog jumping over fence",
            "white van in street",
            "clock is green in color",
        ],
        ["no parking sign", "do not enter sign", "man as clown", "woman under tree"],
    ],
)
def test_short_english_is_english(lines):
    assert find_foreign(lines * 30) is None


def test_one_foreign_caption_among_files_of_one_is_no_other_language(tmp_path):
    for number in range(60):
        text = "A dog stands on the grass and a cat sits in front of the house ."
        if number == 30:
            text = "Ein Hund steht auf der Wiese und eine Katze sitzt vor dem Haus . " * 9
        (tmp_path / f"{number:03}.txt").write_text(text)
    assert len(list(Captions(tmp_path))) == 60


def test_small_files_of_another_language_are_refused_together(tmp_path):
    for number in range(60):
        (tmp_path / f"{number:03}.txt").write_text("Ein Hund steht auf der Wiese und eine Katze sitzt vor dem Haus .")
    with pytest.raises(BuildError, match="German"):
        Captions(tmp_path)
