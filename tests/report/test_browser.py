"""The page of ``vqct-report`` in a real browser: by pointer, by keys, on a phone, in the dark, on paper."""

import itertools
import re

import pytest

from tests.report.conftest import data_of
from vqct_plugin.report.embedding import DPI
from vqct_plugin.report.pictures import SMALLEST_TEXT


def test_every_picture_is_seen(opened):
    tab = opened()
    assert tab.title().startswith("stock, 384 bits; a<b>")
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0 && image.alt)")
    assert tab.locator("section").count() == 9
    assert tab.locator("nav a").count() == 9


def test_pointing_shows_the_words(opened, page):
    """At places of the image, the words that the codes there have; the same by keys."""
    data = data_of(page)
    its = data["runs"][1]
    tab = opened()
    rows, columns = its["grid"]
    stage = tab.locator(".stage")
    stage.scroll_into_view_if_needed()
    tab.locator(".thumbs button").nth(2).click()
    box = stage.bounding_box()
    for row, column in ((0, 0), (rows - 1, columns - 1), (3, 5)):
        cell = row * columns + column
        tab.mouse.move(
            box["x"] + (column + 0.5) / columns * box["width"], box["y"] + (row + 0.5) / rows * box["height"]
        )
        words = [its["words"][layer[cell]] for layer in its["maps"][2]]
        assert tab.locator(".tip").inner_text().split() == [words[0], "adjective", words[1], "noun"]
        same = its["maps"][2][0].count(its["maps"][2][0][cell])
        readout = tab.locator(".readout").inner_text()
        assert f"row {row + 1}, column {column + 1}: {words[0]} + {words[1]}." in readout
        assert f"stands at {same} of {rows * columns}" in readout
    stage.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowDown")
    assert "row 5, column 7" in tab.locator(".readout").inner_text()
    tab.mouse.move(0, 0)
    assert tab.locator(".tip").is_hidden()


def test_a_map_has_the_colors_of_its_codes(opened, page):
    its = data_of(page)["runs"][1]
    tab = opened()
    tab.get_by_role("button", name="noun map").click()
    pixels = tab.evaluate(
        """() => {
          const canvas = document.querySelector("canvas.color");
          return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    colors = [its["colors"][code] for code in its["maps"][0][1]]
    expected = [[*(int(color[i : i + 2], 16) for i in (1, 3, 5)), 255] for color in colors]
    assert [pixels[i : i + 4] for i in range(0, len(pixels), 4)] == expected
    tab.get_by_role("button", name="stock", exact=True).click()
    assert tab.locator(".layers button").all_inner_texts() == ["photograph", "code map"]
    assert (
        tab.locator(".telling h3").first.inner_text()
        == f"Codes that tell {data_of(page)['images'][0]['set'] or 'this image'} apart"
    )


def test_the_search_finds_every_patch(opened, page):
    its = data_of(page)["runs"][1]
    tab = opened()
    flat = [code for image in its["maps"] for layer in image for code in layer]
    code = max(set(flat), key=flat.count)
    word = its["words"][code]
    tab.locator("#finder input").fill(word.upper())
    images = sum(code in layer for image in its["maps"] for layer in image)
    said = tab.locator(".found").inner_text()
    assert f"“{word}”" in said
    assert f"{flat.count(code)} patches in {images} of 5 images" in said
    while tab.locator(".more").count():
        tab.locator(".more").click()
    assert tab.locator(".patches canvas").count() == flat.count(code)
    # each patch is of its image: the middle pixel
    label = tab.locator(".patches button").first.get_attribute("aria-label")
    assert label.startswith(word)
    tab.locator(".patches button").first.click()
    assert word in tab.locator(".readout").inner_text()
    assert " ".join(re.findall(r"row \d+, column \d+", label)) in tab.locator(".readout").inner_text()
    unused = next(i for i in range(64) if i not in flat)
    tab.locator("#finder input").fill(its["words"][unused])
    if its["words"][unused] not in " ".join(its["words"][i] for i in set(flat)):
        assert "is in the codebook, but in none of these images" in tab.locator(".found").inner_text()
    tab.locator("#finder input").fill("zzzz")
    assert tab.locator(".found").inner_text() == "No codebook here has the word “zzzz”."
    assert tab.locator(".patches canvas").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(opened, scheme):
    """Every text's contrast with the ground behind it is at least 4.5 to 1 (WCAG 2.1, AA); charts change with it."""
    tab = opened(color_scheme=scheme)
    worst = tab.evaluate(
        """() => {
          const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
          const linear = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => [r, g, b].map(linear)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          const ground = (element) => {
            for (let it = element; it; it = it.parentElement) {
              const color = numbers(getComputedStyle(it).backgroundColor);
              if (color.length === 3 || color[3] === 1) return color;
            }
            return [255, 255, 255];
          };
          const found = [];
          for (const element of document.querySelectorAll("main *, header *, nav *, footer")) {
            if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
            const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
            found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.outerHTML.slice(0, 80)]);
          }
          return found.sort((a, b) => a[0] - b[0])[0];
        }"""
    )
    assert worst[0] >= 4.5, worst
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 150) == (scheme == "dark")
    shown = tab.evaluate(
        "[...document.querySelectorAll('picture img')].map((i) => i.currentSrc === i.parentElement.children[0].srcset)"
    )
    assert set(shown) == {scheme == "dark"}


WORDS_BOXES = """(figure) => [...figure.querySelectorAll("text")].filter((text) => text.style.display !== "none")
  .map((text) => [text.textContent, text.getBoundingClientRect()])
  .map(([word, b]) => [word, b.left, b.top, b.right, b.bottom])"""


def collide(boxes):
    """Pairs of boxes [text, left, top, right, bottom] that cover each other."""
    pairs = itertools.combinations(boxes, 2)
    return [(a[0], b[0]) for a, b in pairs if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]]


def test_the_focus_stays_on_the_button_pressed(opened):
    tab = opened()
    focused = "document.activeElement.textContent"
    for name in ("noun map", "photograph", "adjective map"):
        tab.get_by_role("button", name=name).focus()
        tab.keyboard.press("Enter")
        assert tab.evaluate(focused) == name
        assert tab.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
        assert tab.locator(".layers [aria-pressed=true]").count() == 1
    tab.locator(".runs button").first.focus()  # of stock, which has other maps
    tab.keyboard.press("Space")
    assert tab.evaluate(focused) == "stock"
    assert tab.locator(".layers button").all_inner_texts() == ["photograph", "code map"]
    tab.locator(".chips button").first.focus()
    tab.keyboard.press("Enter")  # goes to the search, and the focus with it
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.locator(".suggestions button").first.focus()
    tab.keyboard.press("Enter")
    assert "suggestions" in tab.evaluate("document.activeElement.parentElement.className")


def test_more_patches_leave_the_focus_among_them(opened, page):
    its = data_of(page)["runs"][1]
    flat = [code for image in its["maps"] for layer in image for code in layer]
    tab = opened()
    tab.locator("#finder input").fill(its["words"][max(set(flat), key=flat.count)])
    assert tab.locator(".patches canvas").count() == 48
    tab.locator(".more").focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("[...document.querySelector('.patches').children].indexOf(document.activeElement)") == 48


def test_arrow_keys_go_from_thumbnail_to_thumbnail(opened):
    tab = opened()
    chosen = "[...document.querySelectorAll('.thumbs button')].findIndex((it) => it.ariaSelected === 'true')"
    tab.locator(".thumbs button").first.focus()
    for key, expected in (
        ("ArrowRight", 1), ("ArrowDown", 3), ("ArrowLeft", 2), ("ArrowUp", 0), ("ArrowUp", 0), ("ArrowLeft", 0),
        ("End", 4), ("ArrowRight", 4), ("Home", 0),
    ):  # fmt: skip
        tab.keyboard.press(key)
        assert tab.evaluate(chosen) == expected, key
        assert tab.evaluate("document.activeElement.ariaSelected") == "true"
    assert tab.locator(".thumbs button[tabindex='0']").count() == 1


def test_no_text_is_under_eleven_pixels(opened):
    """On a wide page, of the page and of its charts, whose smallest text has ten points."""
    for width in (1440, 390):
        tab = opened(viewport={"width": width, "height": 900})
        small = tab.evaluate(
            """[...document.querySelectorAll("body *")].filter((it) => it.checkVisibility()
              && [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
              && parseFloat(getComputedStyle(it).fontSize) < 11).map((it) => it.outerHTML.slice(0, 80))"""
        )
        assert small == []
        charts = tab.evaluate(
            "[...document.querySelectorAll('.chart img')].map((it) => [it.clientWidth, it.naturalWidth])"
        )
        assert len(charts) >= 6
        for shown, natural in charts:
            assert shown / natural * DPI / 72 * SMALLEST_TEXT >= 11
        assert tab.evaluate("[...document.querySelectorAll('.chart')].every((it) => it.scrollWidth <= it.clientWidth)")


POINTS_IN_FRAME = """(figure) => {
  const frame = figure.querySelector("svg").getBoundingClientRect();
  return [...figure.querySelectorAll("circle")].map((it) => it.getBoundingClientRect()).filter((box) =>
    box.left + box.width / 2 >= frame.left && box.left + box.width / 2 <= frame.right
    && box.top + box.height / 2 >= frame.top && box.top + box.height / 2 <= frame.bottom).length;
}"""


def test_names_on_planes_do_not_collide_and_zooming_shows_more(opened, page):
    planes = data_of(page)["planes"]
    assert [len(its["words"]) for its in planes] == [len(its["before"]) for its in planes]
    tab = opened(viewport={"width": 1440, "height": 900})
    assert tab.locator(".plane").count() == 2 * len(planes) == 4
    figure = tab.locator(".plane").nth(3)  # nouns after
    before = figure.evaluate(WORDS_BOXES)
    assert len(before) > 8
    assert collide(before) == []
    assert before[-1][0] == planes[1]["words"][0]  # the most used has its name, and is drawn last
    for _ in range(3):
        figure.get_by_role("button", name="zoom in").click()
    after = figure.evaluate(WORDS_BOXES)
    assert collide(after) == []
    in_frame = figure.evaluate(POINTS_IN_FRAME)
    assert 0 < in_frame < len(planes[1]["words"])
    assert len(after) / in_frame >= len(before) / len(planes[1]["words"])  # of what is seen, more has its name
    frame = figure.locator("svg").bounding_box()
    for _, left, top, right, bottom in after:
        assert left >= frame["x"]
        assert right <= frame["x"] + frame["width"]
        assert top >= frame["y"]
        assert bottom <= frame["y"] + frame["height"]
    field = figure.locator(".field")
    field.focus()
    tab.keyboard.press("ArrowRight")
    moved = figure.evaluate(WORDS_BOXES)
    assert [text for text, *_ in moved] != [text for text, *_ in after] or moved[0][1] != after[0][1]
    tab.keyboard.press("0")
    again = figure.evaluate(WORDS_BOXES)  # the page may have scrolled: places across it are compared
    assert [(text, left, right) for text, left, _, right, _ in again] == [
        (text, left, right) for text, left, _, right, _ in before
    ]


def test_a_word_that_is_pointed_at_is_seen_in_both_planes(opened, page):
    words = data_of(page)["planes"][1]["words"]
    tab = opened(viewport={"width": 1440, "height": 900})
    for figure in (tab.locator(".plane").nth(2), tab.locator(".plane").nth(3)):
        figure.scroll_into_view_if_needed()
        box = figure.locator(f"g:has(text:text-is('{words[5]}')) circle").bounding_box()
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert tab.locator(".pointed text").all_text_contents() == [words[5]] * 2
        assert all(collide(tab.locator(".plane").nth(i).evaluate(WORDS_BOXES)) == [] for i in (2, 3))
    tab.mouse.move(0, 0)
    assert tab.locator(".pointed").count() == 0


def test_the_menu_says_where_one_is(opened):
    tab = opened(viewport={"width": 1000, "height": 700})
    current = tab.locator("nav [aria-current=true]")
    assert current.all_inner_texts() == ["Summary"]
    for section in ("reconstructions", "space", "about", "summary"):
        tab.evaluate(f"document.documentElement.style.scrollBehavior = 'auto'; location.hash = '#{section}'")
        tab.locator(f"nav [aria-current][href='#{section}']").wait_for(timeout=3000)
        assert current.count() == 1


def test_on_paper_it_is_light_and_whole(opened, tmp_path):
    """Printed from a dark screen: dark ink, light charts, nothing to press, nothing beyond the edge of an A4 page."""
    tab = opened(color_scheme="dark", viewport={"width": 680, "height": 1000})
    tab.emulate_media(media="print", color_scheme="dark")
    ink, paper = tab.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert max(map(int, re.findall(r"\d+", ink))) < 60
    assert paper == "rgb(255, 255, 255)"
    assert tab.evaluate("[...document.querySelectorAll('picture img')].every((it) => it.currentSrc === it.src)")
    for hidden in ("nav", "#search", ".thumbs", ".controls", ".zoom >> nth=0"):
        assert tab.locator(hidden).is_hidden(), hidden
    for seen in ("table.figures", ".tiles", ".stage", ".plane >> nth=0", "#about"):
        assert tab.locator(seen).is_visible(), seen
    assert tab.evaluate("document.documentElement.scrollWidth") <= 680
    data = tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 14


def test_a_phone_does_not_scroll_sideways(opened):
    tab = opened(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    stage = tab.locator(".stage")
    stage.scroll_into_view_if_needed()
    stage.tap(position={"x": 40, "y": 40})
    assert tab.locator(".tip").is_visible()
    assert "row" in tab.locator(".readout").inner_text()
