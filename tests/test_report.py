"""The report: one file, everything escaped, numbers and marks right, small."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from rlspeech import report
from rlspeech.report import Clip, Edit, Metric, ReportData, figures, mark, render_report, verdict
from rlspeech.stats import Interval

EVIL = "<script>alert(1)</script>\"'--> $x^2$ & {{ 7 * 7 }}"
RATE = 16000


def _tone(seconds: float = 0.5, hz: float = 1000.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def _data() -> ReportData:
    metrics = [Metric("pesq_wb", help=EVIL), Metric("lsd", False), Metric(EVIL)]
    mean = {"pesq_wb": Interval(2.0, 1.5, 2.5, 10, 2), "lsd": Interval(5, 4, 6, 12), EVIL: Interval(1, 0, 2, 5)}
    means = {s: mean for s in ("input", "base", EVIL)}
    deltas = {EVIL: {"pesq_wb": Interval(0.2, 0.1, 0.3, 10), "lsd": Interval(0.5, 0.1, 0.9, 12), EVIL: Interval(0.1, -0.1, 0.3, 5)}}
    rows = [{"step": i, EVIL: float(i), "constant": 1.0, "time": 5.0 + i, "odd": float("nan"), "text": "x"} for i in range(80)]
    clips = [Clip(EVIL, {"input": _tone(), EVIL: _tone(hz=2000)}, RATE, EVIL, {"input": {EVIL: None, "pesq_wb": 1.25}})]
    return ReportData(EVIL, EVIL, metrics, means, "base", deltas, {EVIL: rows}, clips, config={EVIL: [EVIL]}, versions={"torch": EVIL},
                      cost={EVIL: EVIL}, notes=[EVIL])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, _Page]:
    path = render_report(tmp_path_factory.mktemp("report") / "report.html", _data())
    html = path.read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(html)
    return html, parsed


def test_no_string_becomes_markup(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert "script" not in parsed.tags and "<script" not in html
    assert parsed.text.count("<script>alert(1)</script>") > 8 and parsed.text.count("{{ 7 * 7 }}") > 8


def test_it_is_self_contained(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert parsed.links and all(link.startswith(("data:", "#")) for link in parsed.links)
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_marks_and_counts(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert 'class="mark better">better' in html and 'class="mark worse">worse' in html and 'class="mark unclear">unclear' in html
    assert "n 10 of 12" in parsed.text and "+0.200" in parsed.text and "pesq_wb 1.25" in parsed.text


@pytest.mark.parametrize(("mean", "lo", "hi", "up", "expected"), [
    (1, 0.5, 2, True, "better"), (1, 0.5, 2, False, "worse"), (-1, -2, -0.5, True, "worse"), (-1, -2, -0.5, False, "better"),
    (1, -0.5, 2, True, "unclear"), (1, float("nan"), float("nan"), True, "unclear"),
])
def test_mark_knows_the_direction(mean: float, lo: float, hi: float, up: bool, expected: str) -> None:
    assert mark(Metric("m", up), Interval(mean, lo, hi, 5)) == expected
    assert mark(Metric("m", up), None) == ""


def test_verdict_names_what_moved() -> None:
    (line,) = verdict(_data())
    assert "better in pesq_wb +0.2" in line and "worse in lsd +0.5" in line and "no difference shown in <script>" in line


def test_curves_are_xml_and_skip_what_says_nothing() -> None:
    (svg,) = figures.curves(_data().curves[EVIL])
    root = ET.fromstring(str(svg))
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]
    assert EVIL in texts and "constant" not in texts and "time" not in texts
    assert "currentColor" in svg and figures.INK not in svg
    assert figures.curves([]) == [] and figures.curves([{"step": 1, "a": 1.0}]) == []


def test_players_carry_the_sound_and_one_scale() -> None:
    drawn = figures.players(Clip("k", {"a": _tone(3.0), "b": 0.1 * _tone(3.0)}, RATE), max_s=2.0)
    wav, rate = sf.read(io.BytesIO(base64.b64decode(drawn.players[0].audio.split(",")[1])))
    assert rate == RATE and len(wav) == 2 * RATE and drawn.seconds == 2.0
    np.testing.assert_allclose(wav, _tone(2.0), atol=1e-4)
    assert drawn.players[0].picture != drawn.players[1].picture  # 20 dB apart on the shared scale


def test_spectrogram_shows_the_frequency() -> None:
    picture = figures.spectrogram_db(_tone(20.0, hz=2000.0))
    assert picture.shape == (257, 480) and int(picture.mean(1).argmax()) == 2000 * 512 // RATE
    assert np.isfinite(figures.spectrogram_db(np.zeros(10, dtype=np.float32))).all()


@pytest.mark.parametrize("bad", [np.zeros(0, dtype=np.float32), np.array([np.nan], dtype=np.float32), np.zeros((2, 8), dtype=np.float32)])
def test_bad_audio_costs_its_player(tmp_path: Path, bad: np.ndarray) -> None:
    data = ReportData("t", clips=[Clip("broken", {"x": bad}, RATE), Clip("fine", {"x": _tone()}, RATE)])
    html = render_report(tmp_path / "r.html", data).read_text()
    assert "broken has no player" in html and html.count("<audio") == 1


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_BYTES", 150_000)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    path = render_report(tmp_path / "r.html", ReportData("t", clips=[Clip(f"c{i}", {"x": noise}, RATE) for i in range(20)]))
    assert path.stat().st_size < 170_000
    assert re.search(r"\d+ clips were left out", path.read_text())


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    html = render_report(tmp_path / "r.html", ReportData("Nothing yet")).read_text()
    assert "<h1>Nothing yet</h1>" in html and "<table" not in html


def test_texts_are_shown_with_their_mistakes_and_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    edits = [Edit("equal", "good", "good"), Edit("replace", evil, "x"), Edit("delete", "gone", ""), Edit("insert", "", evil)]
    clip = Clip("k", {}, 16000, edits={"rl": edits, "silent": []})
    html = render_report(tmp_path / "r.html", ReportData("t", clips=[clip], basis="Sums & sums.")).read_text()
    assert evil not in html and html.count("&lt;script&gt;") == 2
    assert "<del title=\"said\">gone</del>" in html and "<ins class=\"extra\"" in html and "nothing said, nothing written" in html
    assert "<audio" not in html and "Struck out" in html  # words without a sound are shown all the same
