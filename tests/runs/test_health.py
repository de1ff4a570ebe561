"""What is said of a codebook."""

import pytest

from vqct_plugin.runs.health import TO_TRY, TO_TRY_TRANSFERRED, describe_collapse, judge_usage
from vqct_plugin.usage import PartUsage


def usage(in_use, codes=1000, tokens=100_000, perplexity=20.0):
    return PartUsage(codes, in_use, in_use / codes, perplexity, list(range(codes - in_use)), tokens)


@pytest.mark.parametrize(
    ("in_use", "grade"),
    [(1000, "alive"), (500, "alive"), (499, "partly dead"), (100, "partly dead"), (99, "collapsed"), (1, "collapsed")],
)
def test_grades(in_use, grade):
    found = judge_usage(usage(in_use), "noun")
    assert found.grade == grade
    assert f"{in_use:,} of 1,000 nouns are in use ({in_use / 1000:.0%}), as if 20 of them" in found.sentence
    assert ("never chosen" in found.sentence) == (grade != "alive")


def test_few_choices_are_no_collapse_unless_they_are_all_alike():
    assert judge_usage(usage(80, tokens=100)).grade == "too few images"
    assert judge_usage(usage(3, tokens=1000)).grade == "collapsed"
    assert judge_usage(usage(0, tokens=0)).grade == "too few images"


def test_a_collapse_is_warned_of_with_its_trend():
    assert describe_collapse(usage(99), None) is None
    assert describe_collapse(usage(100), usage(120)) is None
    text = describe_collapse(usage(31), usage(40), "noun", transferred=True)
    assert "31 of 1,000 nouns are in use (3%)" in text
    assert "9 fewer than before" in text
    assert text.endswith(TO_TRY_TRANSFERRED)
    assert "2 more than before" in describe_collapse(usage(31), usage(29))
    stock = describe_collapse(usage(31), usage(31), transferred=False)
    assert "as many as before" in stock
    assert stock.endswith(TO_TRY)
    assert "vqct_plugin.VQModel" in stock
