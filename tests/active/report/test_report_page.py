"""The report as files: complete, self-contained, and silent where there is nothing to say."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_runs import FakeRun, study
from matplotlib.figure import Figure
from PIL import Image

from jaxvl.active.report import report
from jaxvl.active.report.curves import _lines, styles
from jaxvl.active.report.html import standing
from jaxvl.active.report.page import document, number, table
from jaxvl.active.report.pictures import encode
from jaxvl.active.report.reasons import why
from jaxvl.active.report.statistics import curves

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Nesting(HTMLParser):
    """Fails on tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(path):
    text = path.read_text()
    parser = Nesting()
    parser.feed(text)
    assert not parser.open
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing is fetched
    assert "nan" not in re.sub(r"data:[^\"]*", "", text).lower().replace("nanoseconds", "")
    return re.sub(r"data:[^\"]*", "", text)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    runs = study(root, methods={"ccrl": 2.0, "random": 0, "entropy": -1.0}, repeats=3, rounds=4)
    return report(runs, root / "report", images=lambda i: np.full((40, 60, 3), i % 255, np.uint8))


def test_a_full_report_has_every_section(full):
    text = checked(full)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Learning curves", "Accuracy", "Areas under the curves", "Share of full-data accuracy", "Against random",
        "Who beats whom", "Choice of evaluation questions", "Forecast", "What was picked",
        "Matching of questions and images", "Score and number of matches", "Images that were picked, and why",
        "Run time", "Protocol",
    ]  # fmt: skip


def test_it_warns_of_few_repeats_and_says_why_images_were_picked(full):
    text = checked(full)
    assert "The study plans for 5 repeats; the method with the fewest has 3" in text
    assert "What color is the ball?" in text and "30 questions match" in text and "<img" in text


def test_matchers_have_their_mean_scores_and_what_speaks_against_them_comes_first(full):
    text = checked(full)
    (row,) = re.findall(r"<tr><td>ccrl</td><td>vqme</td>.*?</tr>", text)
    cells = re.findall(r">([^<]*)</td>", row)
    assert cells == ["ccrl", "vqme", "0.760", "0.600", *["-"] * 4, "0.250", "-", "-"]
    warn = "ccrl, repeat 2, round 0, vqme: +0.017: it carries no visual evidence. And 2 more like it."
    assert text.index(warn) < text.index("Learning curves")
    assert text.count("Selections of ccrl are approximate: k_max=16.") == 1


def test_curves_are_drawn_and_every_point_is_in_the_table(full):
    with Image.open(full.parent / "curves.png") as image:
        assert image.size[0] > 1500 and len(image.convert("RGB").getcolors(1 << 24)) > 50
    with (full.parent / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 4
    assert {r["method"] for r in rows} == {"ccrl", "random", "entropy"} and float(
        rows[0]["accuracy yes/no"]
    ) > 50


def test_one_seed_gets_no_verdict(tmp_path):
    text = checked(report(study(methods={"ccrl": 9.0, "random": 0}, repeats=1, rounds=2), tmp_path))
    assert "one repeat: no verdict" in text and "One repeat says nothing of the spread" in text
    assert "<td>better</td>" not in text


def test_answers_that_are_no_candidates_are_listed_if_there_are_any(tmp_path):
    one = FakeRun("ccrl", 0, rounds=2)
    assert "no candidates" not in checked(report([one], tmp_path))
    outside = {"questions": 3, "distinct": 2, "most": {"zebra": 2, "gnu": 1}}
    one.rounds[-1]["vocabulary"] = {"answers": 41, "outside": outside}
    assert "zebra (2), gnu (1)" in checked(report([one], tmp_path))


def test_a_proposer_that_needs_a_word_of_caution_gets_it_in_the_report(tmp_path):
    text = checked(report([FakeRun("ccrl", 0, rounds=2, proposer="visible/8")], tmp_path))
    assert "Questions by visible/8. Transductive" in text


def test_a_single_round_is_a_report_too(tmp_path):
    text = checked(report([FakeRun("ccrl", 0, rounds=1)], tmp_path))
    assert "Areas need two rounds." in text and "Against random" not in text


def test_no_round_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run has been evaluated yet"):
        report([FakeRun("ccrl", 0, rounds=0)], tmp_path)


@pytest.mark.parametrize("part", ["pool", "variant", "proposer"])
def test_runs_of_other_protocols_are_refused(tmp_path, part):
    runs = [FakeRun("random", 0), FakeRun("ccrl", 0, **{part: "another"})]
    with pytest.raises(ValueError, match=f'ccrl, repeat 0: {part} is "another", that of random, repeat 0'):
        report(runs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_initial_set_is_refused_within_a_repeat_only(tmp_path):
    other = FakeRun("ccrl", 0, rounds=2)
    other._ids[0] = next(i for i in range(500) if i not in other._ids)
    with pytest.raises(ValueError, match="ccrl, repeat 0: it starts from other images than random, repeat 0"):
        report([FakeRun("random", 0, rounds=2), other], tmp_path)
    assert report([FakeRun("random", 0, rounds=2), FakeRun("random", 1, rounds=2)], tmp_path).exists()


def test_picks_say_how_many_images_they_stand_for():
    assert "stands for 1 unselected image<" in why({"score": None, "stands_for": 1})
    assert "picked by its score; stands for 12 unselected images" in why({"score": 0.5, "stands_for": 12})
    said = standing([{"stands_for": n} for n in (0, 10, 20, 70)])
    assert "The 4 picks stand for 100 images" in said and "median 15" in said and "1 for none" in said


def test_texts_are_escaped():
    text = document("<b>", table(["<i>"], [["<script>"]]))
    assert "<script>" not in text and "&lt;script&gt;" in text and "<title>&lt;b&gt;</title>" in text


def test_numbers_are_short():
    assert [number(x) for x in (None, float("nan"), 0.5, 123.45, 12345.6, 12345)] == [
        "-", "-", "0.50", "123.5", "12346", "12,345",
    ]  # fmt: skip


def test_an_array_of_another_kind_is_no_picture():
    with pytest.raises(ValueError, match="image 7: an array of float64"):
        encode(np.zeros((4, 4, 3)), 7)


@pytest.mark.parametrize(("rounds", "drawn"), [(2, [0.04, 0.08]), (4, [0.08, 0.12, 0.16])])
def test_curves_begin_after_the_round_that_all_methods_share(rounds, drawn):
    found = curves(study(methods={"random": 0, "ccrl": 1}, repeats=2, rounds=rounds))
    axis = Figure().subplots()
    _lines(axis, found, styles(list(found)), title="all")
    assert [line.get_xdata().tolist() for line in axis.get_lines()] == [pytest.approx(drawn)] * 2


def test_cost_gets_a_panel_and_a_column_where_images_do_not_explain_it(tmp_path):
    runs = study(methods={"random": 0.0, "ccrl": 1.0}, repeats=2)
    report(runs, tmp_path / "plain")
    assert "over cost" not in (tmp_path / "plain/report.html").read_text()
    for run in runs:
        for row in run.rounds:  # an image costs one, a question a half
            row["cost"] = {"total": row["n_images"] + 0.5 * row["n_qas"] + run.repeat}
    report(runs, tmp_path / "priced")
    assert "over cost" in (tmp_path / "priced/report.html").read_text()
    with (
        Image.open(tmp_path / "plain/curves.png") as plain,
        Image.open(tmp_path / "priced/curves.png") as wide,
    ):
        assert wide.width > plain.width
