"""The report: one file, everything escaped, numbers and marks right, small."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile as sf

from rlspeech.report import Clip, Edit, Grid, Line, Metric, Plot, ReportData, figures, mark, players, sentences
from rlspeech.report import render as page_of
from rlspeech.report.render import render_report
from rlspeech.stats import Interval

EVIL = "<script>alert(1)</script>\"'--> $x^2$ & {{ 7 * 7 }}"
RATE = 16000
NAN = float("nan")


def _tone(seconds: float = 0.5, hz: float = 1000.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def _data() -> ReportData:
    metrics = [Metric("pesq_wb", help=EVIL), Metric("lsd", False), Metric(EVIL)]
    mean = {"pesq_wb": Interval(2.0, 1.5, 2.5, 10, 2), "lsd": Interval(5, 4, 6, 12), EVIL: Interval(1, 0, 2, 5)}
    means = {s: mean for s in ("input", "base", EVIL)}
    delta = {"pesq_wb": Interval(0.2, 0.1, 0.3, 10), "lsd": Interval(0.5, 0.1, 0.9, 12)}
    delta[EVIL] = Interval(0.1, -0.1, 0.3, 5)
    other = {"constant": 1.0, "odd": NAN, "text": "x"}
    rows = [{"step": i, EVIL: float(i), "time": 5.0 + i, **other} for i in range(80)]
    audio = {"input": _tone(), EVIL: _tone(hz=2000)}
    scores = {"input": {EVIL: None, "pesq_wb": 1.25}, EVIL: {"llm": 4.25}}
    clips = [Clip(EVIL, audio, RATE, EVIL, scores, {EVIL: EVIL}, label=EVIL)]
    plots = [Plot(EVIL, [Line(EVIL, [0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])], "guard", EVIL, 1.0)]
    plots += figures.from_rows({EVIL: rows})
    more = {"config": {EVIL: [EVIL]}, "versions": {"torch": EVIL}, "cost": {EVIL: EVIL}, "facts": {EVIL: EVIL}}
    more |= {"notes": [EVIL], "commands": [EVIL], "basis": EVIL, "grids": [Grid(EVIL, [EVIL], [[EVIL]], EVIL)]}
    return ReportData(EVIL, EVIL, metrics, means, "base", {EVIL: delta}, clips, plots=plots, **more)


def _html(data: ReportData) -> str:
    return page_of.render(data, page_of.MAX_BYTES)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.attributes += [k for k, _ in attrs]

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
    # the data, the page's own
    assert parsed.tags.count("script") == 2 and html.count("<script") == 2 and html.count("</script") == 2
    assert parsed.text.count("<script>alert(1)</script>") > 20 and parsed.text.count("{{ 7 * 7 }}") > 20
    assert not any(name.startswith("on") for name in parsed.attributes)


def test_what_the_script_is_handed_is_the_data(page: tuple[str, _Page]) -> None:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page[0], re.S)
    assert text is not None and "<" not in text[1] and "&" not in text[1]
    handed = json.loads(text[1])
    assert handed["title"] == EVIL and handed["systems"] == ["input", "base", EVIL]
    assert handed["clips"][0]["label"] == EVIL
    assert handed["clips"][0]["players"][0]["scores"] == {EVIL: None, "pesq_wb": 1.25}


def test_the_policy_forbids_the_network_and_names_what_is_inlined(page: tuple[str, _Page]) -> None:
    html, _ = page
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', html)
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in unescape(policy[1]).split(";"))
    assert rules["default-src"] == "'none'" and not any(word in policy[1] for word in ("unsafe", "http", "*"))
    for rule, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        inline = re.search(pattern, html, re.S)
        assert inline is not None
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()}'"
    assert not re.search(r"<[^>]*\sstyle=", html)  # the policy would drop it


def test_it_is_self_contained(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert parsed.links and all(link.startswith(("data:", "#")) for link in parsed.links)
    assert all(f'id="{link[1:]}"' in html for link in parsed.links if link.startswith("#"))
    signs = "prefers-color-scheme: dark|width=device-width|prefers-reduced-motion|@media print|focus-visible"
    assert all(sign in html for sign in signs.split("|"))
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_marks_and_counts(page: tuple[str, _Page]) -> None:
    html, parsed = page
    assert 'class="mark better">better' in html and 'class="mark worse">worse' in html
    assert 'class="mark unclear">unclear' in html
    assert "n 10 of 12" in parsed.text and "+0.200" in parsed.text and "pesq_wb 1.25" in parsed.text
    assert "4.25 llm" in parsed.text


MARKS = [(1, 0.5, 2, True, "better"), (1, 0.5, 2, False, "worse"), (-1, -2, -0.5, True, "worse")]
MARKS += [(-1, -2, -0.5, False, "better"), (1, -0.5, 2, True, "unclear"), (1, NAN, NAN, True, "unclear")]


@pytest.mark.parametrize(("mean", "lo", "hi", "up", "expected"), MARKS)
def test_mark_knows_the_direction(mean: float, lo: float, hi: float, up: bool, expected: str) -> None:
    assert mark(Metric("m", up), Interval(mean, lo, hi, 5)) == expected
    assert mark(Metric("m", up), None) == ""


def test_verdict_names_what_moved() -> None:
    (line,) = sentences(_data())
    assert "better in pesq_wb +0.2" in line and "worse in lsd +0.5" in line
    assert "no difference shown in <script>" in line


def test_what_moved_is_not_pushed_off_a_phone_by_what_did_not() -> None:
    def page(systems: int) -> str:
        data, names = _data(), [f"model-{i}" for i in range(systems)]
        means = dict.fromkeys(("base", *names), data.means["base"])
        return _html(replace(data, deltas=dict.fromkeys(names, data.deltas[EVIL]), means=means))

    few, many = page(3), page(4)
    folded = '<details><summary class="count">'
    assert folded not in few and few.count('<p class="count">') == 9
    assert many.count(folded) == 4 and many.count('<p class="count">') == 8 and many.count("1 no difference shown") == 4


def _texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def _svg(*lines: Line) -> str:
    """The one drawing of a plot."""
    (group,) = figures.groups([Plot("x", lines)])
    return str(group.drawings[0].svg)


def test_bad_rows_are_left_out() -> None:
    bad: list = [{"a": 1.0}, {"step": NAN, "a": 1.0}, {"step": "x", "a": 1.0}, None, "torn"]
    rows = [{"step": 2, "a": 5.0}, *bad, {"step": 1, "a": 1.0, "b": None}, {"step": 2, "a": 2.0}]
    (plot,) = figures.from_rows({"r": rows})
    # in order, and a step run again counts once
    assert plot.lines[0].steps == [1, 2] and plot.lines[0].mean == [1.0, 2.0]


def test_a_drawing_holds_numbers_only_and_follows_the_style_sheet() -> None:
    lines = [Line(f"{EVIL}{n}", [0, 1, 2], [0.0, float("nan"), n], [-1, -1, -1], [3, 3, 3]) for n in range(9)]
    nothing = Plot("nothing", [Line("r", [0], [1.0])], "guard")
    (group,) = figures.groups([Plot(EVIL, lines, "guard", start=0.5), nothing])
    (drawing,) = group.drawings
    svg = str(drawing.svg)
    assert all(re.fullmatch("[−0-9.]*", t) for t in _texts(svg)) and "script" not in svg
    assert "currentColor" in svg and figures.INK not in svg and not any(c in svg for c in figures.RUNS)
    assert 'class="f8' not in svg and svg.count('class="run8"') == 2  # a ninth run has the first colour again
    assert group.bands and group.starts and [e.last for e in drawing.ends] == list(range(9))
    assert drawing.ends[3].lo == -1


def test_a_small_range_keeps_the_digits_of_its_ticks() -> None:
    svg = _svg(Line("r", [0, 1, 2], [1e-4, 1.2e-4, 1.4e-4]))
    ticks = [t for t in _texts(svg) if t.startswith("0.0001")]
    assert len(set(ticks)) == len(ticks) >= 3 and not re.search(r'="[^"]*\d\.\d{3}', svg)  # places have two


@pytest.mark.parametrize(("value", "power"), [(4e-8, "e\N{MINUS SIGN}8"), (-3e7, "e7")])
def test_every_tick_has_its_power_of_ten(value: float, power: str) -> None:
    ticks = [t for t in _texts(_svg(Line("r", [0, 1, 2], [0.0, value, 2 * value]))) if "e" in t]
    assert sum(t.endswith(power) for t in ticks) >= 2
    assert not any(t.startswith("1e") and t.endswith(power) and value < 0 for t in ticks)


def test_training_curves_are_folded_where_rewards_are_drawn() -> None:
    def shown(*columns: str) -> list[tuple[str, str]]:
        rows = [{"step": i, **{c: float(i) for c in columns}} for i in range(4)]
        html = _html(replace(_data(), plots=figures.from_rows({"run": rows})))
        return re.findall(r'<details class="card group"( open)?><summary>(\w+)', html)

    assert shown("train/loss") == [(" open", "Training")]
    assert shown("train/loss", "valid/reward", "reward") == [(" open", "Rewards"), ("", "Training")]


def test_dashes_and_colour_tell_sixteen_runs_apart() -> None:
    svg = _svg(*(Line(str(n), range(40), np.arange(40.0) * n) for n in range(16)))
    drawn = [e for e in ET.fromstring(svg).iter("path") if str(e.get("class", "")).startswith("s")]
    assert len({(e.get("class"), e.get("stroke-dasharray")) for e in drawn}) == 16


def test_a_long_noisy_curve_is_thinned_and_smoothed() -> None:
    noise = np.random.default_rng(0).normal(size=20_000)
    svg = _svg(Line("r", range(20_000), noise.tolist()))
    assert len(svg) < 60_000 and svg.count('class="run0"') == 2
    smooth = figures._smooth(np.array([1.0, np.nan, 1.0, 1.0]))
    assert np.isnan(smooth[1]) and smooth[[0, 2, 3]].tolist() == [1, 1, 1]


def _decode(address: str) -> tuple[np.ndarray, int]:
    return sf.read(io.BytesIO(base64.b64decode(address.split(",")[1])))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000, 96000])
def test_sound_is_compressed_and_stays_what_it_was(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    wav = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.sin(2 * np.pi * 0.4 * rate * time)).astype(np.float32)
    kind, file = players.encode(wav, rate)
    decoded, rate_now = sf.read(io.BytesIO(file))
    assert kind == "audio/mpeg" and len(file) < 2 * 13_000 and abs(len(decoded) / rate_now - 2) < 0.06
    spectrum = np.abs(np.fft.rfft(decoded[: 2 * rate_now] * np.hanning(2 * rate_now))) / rate_now
    assert spectrum[880] == pytest.approx(0.15, rel=0.1) or rate > 48000
    # the top of the band is not cut off
    assert rate > 48000 or spectrum[int(0.8 * rate)] == pytest.approx(0.05, rel=0.1)


def test_two_systems_stay_in_step() -> None:
    wav = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    drawn = players.players(Clip("k", {"a": wav, "b": 0.5 * wav}, RATE), 5.0)
    (a, rate), (b, _) = (_decode(p.audio) for p in drawn.players)
    lag = int(np.argmax(np.correlate(a[4000:12000], b[4000:12000], "full"))) - 7999
    assert abs(lag) <= 1 and drawn.players[0].level_db - drawn.players[1].level_db == pytest.approx(6.02, abs=0.01)


def test_without_an_mp3_encoder_the_sound_is_flac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sf, "check_format", lambda *_: False)
    kind, file = players.encode(_tone(), RATE)
    assert kind == "audio/flac" and file[:4] == b"fLaC"
    np.testing.assert_allclose(sf.read(io.BytesIO(file))[0], _tone(), atol=1e-4)


def test_players_are_cut_share_one_scale_and_say_what_was_done() -> None:
    drawn = players.players(Clip("k", {"a": _tone(3.0), "b": 0.1 * _tone(3.0), "c": 10 * _tone(1.0)}, RATE), max_s=2.0)
    a, b, c = drawn.players
    assert drawn.seconds == 2.0 and drawn.whole_s == 3.0
    assert len(_decode(a.audio)[0]) / _decode(a.audio)[1] == pytest.approx(2, abs=0.06)
    assert a.picture != b.picture  # 20 dB apart on the shared scale
    assert c.remark == "played 9.5 dB lower, else it would clip" and not a.remark


def test_words_without_sound_and_the_rating_beside_them() -> None:
    clip = Clip("k", {"a": _tone()}, RATE, scores={"b": {"llm": 3.0, "estoi": 0.5}}, texts={"b": "fine"})
    drawn = players.players(clip, 5.0)
    assert [p.system for p in drawn.players] == ["a", "b"] and not drawn.players[1].audio
    assert drawn.players[1].ratings == {"llm": 3.0} and drawn.players[0].ratings == {}


def test_spectrogram_shows_the_frequency() -> None:
    picture = players.spectrogram_db(_tone(20.0, hz=2000.0))
    assert picture.shape == (257, 480) and int(picture.mean(1).argmax()) == 2000 * 512 // RATE
    assert np.isfinite(players.spectrogram_db(np.zeros(10, dtype=np.float32))).all()


@pytest.mark.parametrize("bad", [np.zeros(0), np.array([np.nan]), np.zeros((2, 8))])
def test_bad_audio_has_no_player(bad: np.ndarray) -> None:
    html = _html(ReportData("t", clips=[Clip("broken", {"x": bad}, RATE), Clip("fine", {"x": _tone()}, RATE)]))
    assert "broken has no player" in html and html.count("<audio") == 1


def test_short_of_room_all_clips_are_cut_alike() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 12 * RATE).astype(np.float32)
    clips = [Clip(f"c{i}", {"x": noise[: s * RATE]}, RATE) for i, s in enumerate((12, 12, 2, 12))]
    whole = sum(p.size(99) for p in players.fit(clips, 10**8)[0])
    kept, notes = players.fit(clips, int(0.7 * whole))
    assert [k.clip.key for k in kept] == ["c0", "c1", "c2", "c3"] and kept[2].seconds == 2 and 4 < kept[0].seconds < 12
    assert len({round(k.seconds, 3) for k in kept}) == 2 and sum(k.size(99) for k in kept) < 0.7 * whole
    assert notes == [f"3 of 4 clips are longer and end after {kept[0].seconds:.1f} s here"]


def test_shorter_still_clips_are_left_out_evenly_but_one_of_a_label_stays() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    clips = [Clip(f"c{i}", {"x": noise}, RATE, label={9: "worst", 10: "largest gain"}.get(i, "")) for i in range(20)]
    one = players.players(clips[0], 9).size(9)
    kept, notes = players.fit(clips, int(6.5 * one))
    keys = [k.clip.key for k in kept]
    assert len(keys) == 6 and {"c9", "c10", "c0", "c19"} <= set(keys) and keys == sorted(keys, key=lambda k: int(k[1:]))
    assert notes[0].startswith("14 of 20 clips were left out to keep this page small: c")
    assert players.fit(clips, 10)[0] == []


def test_it_stays_small() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    clips = [Clip(f"c{i}", {"x": noise}, RATE) for i in range(20)]
    html = page_of.render(ReportData("t", clips=clips, config={"long": "x" * 40_000}), 320_000)
    assert len(html.encode()) < 330_000 and re.search(r"\d+ of 20 clips were left out", html)


def test_clips_with_a_label_come_first_and_the_blind_test_needs_a_pair() -> None:
    clips = [Clip("plain", {"a": _tone(), "b": _tone()}, RATE), Clip("picked", {"a": _tone()}, RATE, label="worst")]
    html = _html(ReportData("t", clips=clips))
    assert html.index(">picked<") < html.index(">plain<") and "<dialog" in html
    assert "<dialog" not in _html(ReportData("t", clips=clips[1:]))


def test_odd_unicode_changes_a_letter_and_keeps_the_page() -> None:
    odd = "half \udce9 pair \u202e turned \x00 \u2028"
    clips, plots = [Clip(odd, {odd: _tone()}, RATE, label=odd)], [Plot(odd, [Line(odd, [0, 1], [0, 1])])]
    html = _html(ReportData(odd, clips=clips, plots=plots))
    assert "half ? pair" in html and html.count("<audio") == 1


def test_the_bars_of_the_differences_share_a_scale_in_a_row() -> None:
    found = {"a": Interval(1, 0, 2, 5), "b": Interval(-1, NAN, NAN, 1), "c": Interval(NAN, 0, 0, 0)}
    deltas = {system: {"m": delta} for system, delta in found.items()}
    places = page_of._forest(ReportData("t", metrics=[Metric("m")], deltas=deltas))
    assert places == {"a": {"m": (50, 73, 96)}, "b": {"m": (27, 27, 27)}, "c": {}}


NUMBERS = [(1.23456, "1.235", "+1.235"), (-0.5, "−0.500", "−0.500"), (250.04, "250.0", "+250.0")]
NUMBERS += [(small, "0.000", "0.000") for small in (-0.0001, 0.0001)]
NUMBERS += [(none, "–", "–") for none in (None, NAN, float("inf"))]


@pytest.mark.parametrize(("value", "plain", "signed"), NUMBERS)
def test_numbers(value: float | None, plain: str, signed: str) -> None:
    assert page_of._number(value) == plain and page_of._signed(value) == signed


def test_long_names_may_break_and_stay_escaped() -> None:
    assert page_of._breaks("a_<b>_c") == "a_<wbr>&lt;b&gt;_<wbr>c"


def test_an_empty_report_is_a_page() -> None:
    html = _html(ReportData("Nothing yet"))
    assert '<h1 dir="auto">Nothing yet</h1>' in html and "<section" not in html


def test_texts_are_shown_with_their_mistakes_and_escaped() -> None:
    evil = "<script>alert(1)</script>"
    words = ("equal", "good", "good"), ("replace", evil, "x"), ("delete", "gone", ""), ("insert", "", evil)
    clip = Clip("k", {}, 16000, edits={"rl": [Edit(*w) for w in words], "silent": []})
    html = _html(ReportData("t", clips=[clip], basis="Sums & sums."))
    assert evil not in html and html.count("&lt;script&gt;") == 2
    assert '<del title="said">gone</del>' in html and '<ins class="extra"' in html
    assert "nothing said, nothing written" in html
    assert "<audio" not in html and "Struck out" in html  # words without a sound are shown all the same
