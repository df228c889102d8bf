"""The report in a real browser without a screen: it renders, plays, asks blind and counts, and keeps strangers' text as text."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest
from tiny_runs import RATE, tone

from rlspeech.report import Clip, Edit, Grid, Line, Metric, Plot, ReportData
from rlspeech.report.render import render_report
from rlspeech.stats import Interval

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
FOUND = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
CHROME = os.environ.get("RLSPEECH_CHROME") or next(iter(FOUND), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROME is None, reason="no browser, nor one in RLSPEECH_CHROME")]
FLAGS = ["--no-sandbox", "--no-first-run", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
FLAGS += [f"--disable-{what}" for what in ("gpu", "quic", "background-networking", "component-update", "sync")]
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
CONTRAST = """() => {  // ratio of every text to what is behind it, as WCAG counts it, the lowest first
  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('script, svg, .axis, :disabled') || e.matches('.hide, .skip')) continue;
    const a = light(rgba(getComputedStyle(e).color)), b = light(behind(e));
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`]);
  }
  return found.sort((p, q) => p[0] - q[0]);
}"""


def _data() -> ReportData:
    clips = []
    for n in range(6):
        long = 2 if n else 15  # the first is long enough to be switched while it plays, on a slow machine too
        audio = {"input": tone(300 + n, long), "base": tone(500 + n, long), "tuned": tone(700 + n, 1.25 * long) / 2}
        scores: dict[str, Any] = {"base": {"llm": 2.0, "lsd": 5.0}, "tuned": {"llm": 1.0 + n / 2, "lsd": 5.0 + n}}
        label, key = {0: "largest loss", 5: "largest gain"}.get(n, ""), f"clip {n} {EVIL}" if n == 3 else f"=clip {n}"
        clips.append(Clip(key, audio, RATE, EVIL, scores, {"tuned": EVIL}, {}, label))
    clips[1].edits = {"tuned": [Edit("replace", EVIL, EVIL), Edit("insert", "", EVIL)]}
    deltas = {"tuned": {"llm": Interval(0.5, 0.2, 0.8, 6), "lsd": Interval(0.5, -0.1, 1.1, 6)}}
    lines = [Line(EVIL, range(5), range(5), range(-1, 4), range(1, 6)), Line("other", range(5), [3] * 5)]
    return ReportData(
        f"Report {EVIL}",
        EVIL,
        [Metric("llm", help=EVIL), Metric("lsd", False), Metric("a_metric_with_a_rather_long_name_without_spaces")],
        {s: {"llm": Interval(2, 1, 3, 6), "lsd": Interval(5, 4, 6, 6)} for s in ("input", "base", "tuned", EVIL)},
        "base",
        deltas,
        clips,
        {"key": EVIL, "path": "/x" * 90},
        {"torch": "2"},
        {"collecting": "3 s"},
        ["/very/long/path" * 12, EVIL],
        [Grid("Wide", [f"column {n}" for n in range(12)], [["cell"] * 12])],
        plots=[Plot(EVIL, lines, "guard", "a note", 1.0), Plot("loss", lines), Plot("seconds", lines, "cost")],
        commands=["rlspeech eval --model tuned=" + "runs/x" * 30],
        facts={"data": "/data" * 40},
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_report(tmp_path_factory.mktemp("browser") / "report.html", _data())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROME, args=FLAGS)
        yield chromium
        chromium.close()


class _Context:
    """A browser profile; what its pages complain about, and what they ask of the network, fails the test."""

    def __init__(self, browser: Any, report: Path) -> None:
        self.browser, self.report, self.troubles = browser, report, []

    def open(self, before: str = "", **options: Any) -> Any:
        self.profile = self.browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        self.profile.set_default_timeout(60_000)
        if before:
            self.profile.add_init_script(before)
        return self.page()

    def page(self) -> Any:
        page = self.profile.new_page()
        page.on("console", lambda message: self.troubles.append(message.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", lambda asked: self.troubles.extend(re.findall(r"^(?!file:|data:|blob:).+", asked.url)))
        page.goto(self.report.as_uri())
        return page


@pytest.fixture
def context(browser: Any, report: Path) -> Iterator[_Context]:
    made = _Context(browser, report)
    yield made
    made.profile.close()
    assert made.troubles == []


def _until(page: Any, expression: str) -> None:
    """Playwright's own wait evaluates text in the page, which the page's policy forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"not within half a minute: {expression}")


# a key, and what the players do in the same instant: no time passes between, however busy the machine is
PRESS = """(key) => {
  document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
  return [...document.querySelectorAll('article audio')].map((a) => [a.paused, a.currentTime]);
}"""


def test_it_renders_and_every_player_loads(context: _Context) -> None:
    page = context.open()
    _until(page, "[...document.querySelectorAll('audio')].every((a) => a.readyState > 0)")
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map((a) => a.duration)")
    assert len(lengths) == 18 and all(1.95 < s < 19 for s in lengths)
    assert page.evaluate("[...document.images].every((i) => i.naturalWidth > 100)")
    assert page.locator(".curves svg").count() >= 3
    assert page.locator(".curves svg >> nth=0").bounding_box()["height"] > 80


def test_text_stays_text(context: _Context) -> None:
    page = context.open()
    assert page.evaluate("window.hacked") is None and page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 2 and page.locator("h1").inner_text() == f"Report {EVIL}"
    assert page.locator("article blockquote").first.inner_text() == EVIL
    assert page.locator(".edits ins").first.inner_text() == EVIL


def test_keys_switch_systems_at_the_same_position(context: _Context) -> None:
    page = context.open()
    page.keyboard.press("j")
    page.keyboard.press("1")
    _until(page, "document.querySelector('audio').currentTime > 1")
    first, second, *rest = page.evaluate(PRESS, "2")
    assert first[0] and not second[0] and abs(second[1] - first[1]) < 0.05 and second[1] > 1 and all(s[0] for s in rest)
    assert page.locator("article >> nth=0").locator("button.pick >> nth=1").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Pause").click()
    assert page.evaluate("[...document.querySelectorAll('audio')].every((a) => a.paused)")
    before = page.evaluate("document.querySelectorAll('audio')[1].currentTime")
    assert page.evaluate(PRESS, "ArrowLeft")[1] == [True, pytest.approx(before - 1, abs=0.01)]
    page.get_by_label("same position when switching").uncheck()
    assert page.evaluate(PRESS, "3")[2] == [False, 0]


def test_filters_and_sorting(context: _Context) -> None:
    page = context.open()
    keys = lambda: [text.split()[1] for text in page.locator("article:visible h3").all_inner_texts()]  # noqa: E731
    assert keys() == ["0", "5", "1", "2", "3", "4"]  # those with a label come first
    page.get_by_role("button", name="largest loss").click()
    assert keys() == ["0"]
    page.get_by_role("button", name="All 6").click()
    page.get_by_label("Sort by difference in").select_option("llm")
    assert keys() == ["0", "1", "2", "3", "4", "5"]
    assert page.locator("article .gain >> nth=0").inner_text() == "llm −1.000"
    page.get_by_label("which first").select_option("best")
    assert keys()[0] == "5"
    page.get_by_label("Sort by difference in").select_option("lsd")
    assert keys()[0] == "0"  # lower is better
    page.get_by_label("Find").fill("clip 3")
    assert keys() == ["3"]


def _vote(page: Any, key: str) -> None:
    page.keyboard.press("a")
    page.keyboard.press("b")
    page.keyboard.press(key)


def _saved(page: Any, kind: str, folder: Path) -> str:
    with page.expect_download() as download:
        page.locator(f"[data-save={kind}]").click()
    download.value.save_as(folder / kind)
    return (folder / kind).read_text(encoding="utf-8")


def test_the_blind_comparison_from_the_first_pair_to_the_export(context: _Context, tmp_path: Path) -> None:
    page = context.open(accept_downloads=True)
    page.get_by_role("button", name="Blind A/B test").click()
    page.get_by_label("Second system").select_option("base")
    assert page.get_by_role("button", name="Start").is_disabled()
    page.get_by_label("Second system").select_option("tuned")
    page.get_by_label("Seed of the order").fill("11")
    page.get_by_label("Listener").fill("me <b>")
    page.get_by_role("button", name="Start").click()
    dialog = page.locator("dialog")
    assert "Pair 1 of 6" in dialog.inner_text()
    assert not any(name in dialog.inner_text() for name in ("base", "tuned", "clip"))
    page.keyboard.press("1")  # nothing was heard yet: no vote
    page.keyboard.press("a")
    page.keyboard.press("2")
    assert "Pair 1 of 6" in dialog.inner_text() and "Listen to both first." in dialog.inner_text()
    _vote(page, "1")
    _vote(page, "0")
    page.keyboard.press("Backspace")
    assert "Pair 2 of 6" in dialog.inner_text()
    page.keyboard.press("2")  # the vote is changed; both were heard before
    page.reload()  # nothing is lost
    page.get_by_role("button", name="Blind A/B test").click()
    page.get_by_role("button", name="Go on (2 of 6 voted)").click()
    for n, key in enumerate(("1", "0", "2", "1")):
        assert f"Pair {n + 3} of 6" in dialog.inner_text()
        _vote(page, key)
    told = json.loads(_saved(page, "json", tmp_path))
    assert told["systems"] == ["base", "tuned"] and told["seed"] == 11 and told["listener"] == "me <b>"
    assert told["equal_loudness"]
    votes = told["votes"]
    assert [v["vote"] for v in votes] == ["a", "b", "a", "none", "b", "a"]
    assert all(v["preferred"] == {"a": v["a"], "b": v["b"], "none": "none"}[v["vote"]] for v in votes)
    assert sorted(v["a"] for v in votes) == ["base"] * 3 + ["tuned"] * 3
    assert {v["clip"] for v in votes} == {c.key for c in _data().clips}
    wins = sum(v["preferred"] == "tuned" for v in votes)
    expected = binomtest(wins, 5).proportion_ci(method="wilson")
    assert told["result"]["second"] == wins and told["result"]["none"] == 1 and told["result"]["share"] == wins / 5
    assert told["result"]["interval"] == pytest.approx([expected.low, expected.high], abs=1e-9)
    assert f"of 5 votes with a preference: {100 * max(wins, 5 - wins) // 5} %" in dialog.inner_text()
    rows = _saved(page, "csv", tmp_path).splitlines()
    assert rows[0].startswith('"pair","clip","a","b","vote","preferred"') and len(rows) == 7
    assert sum("\"'=clip" in row for row in rows) == 5  # no formula for a spreadsheet


def test_wilson_and_the_order(context: _Context) -> None:
    page = context.open()
    for wins, n in ((0, 1), (0, 12), (3, 7), (9, 14), (20, 20), (512, 1000)):
        expected = binomtest(wins, n).proportion_ci(method="wilson")
        assert page.evaluate(f"rlspeech.wilson({wins}, {n})") == pytest.approx([expected.low, expected.high], abs=1e-9)
    plans = page.evaluate("[1, 1, 2].map((seed) => rlspeech.plan([...Array(40).keys()], seed))")
    assert plans[0] == plans[1] != plans[2] and sorted(p["clip"] for p in plans[0]) == list(range(40))
    assert all(sum(p["a"] for p in plan) == 20 for plan in plans)
    sides = [p["a"] for p in plans[0]]
    changes = sum(a != b for a, b in zip(sides, sides[1:], strict=False))
    assert abs(changes - 20) < 4 * math.sqrt(10)  # no pattern that a listener could follow


def test_a_browser_that_refuses_its_store_only_forgets(context: _Context) -> None:
    refusal = "{ get() { throw new DOMException('denied', 'SecurityError'); } }"
    page = context.open(f"Object.defineProperty(window, 'localStorage', {refusal});")
    page.get_by_role("button", name="Blind A/B test").click()
    page.get_by_role("button", name="Start").click()
    _vote(page, "1")
    assert "Pair 2 of 6" in page.locator("dialog").inner_text()
    page.get_by_role("button", name="Result so far").click()
    page.get_by_role("button", name="Go on").click()
    assert page.get_by_role("button", name="Back").is_disabled()  # the first pair was unveiled


def test_buttons_copy_and_legends_hide(context: _Context) -> None:
    page = context.open(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").last.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == _data().commands[0]
    page.locator(".legend button").last.scroll_into_view_if_needed()
    group = page.locator("#curves details[open]").first  # a legend is its own group's
    shown = group.locator(".run1:visible").count()
    group.locator(".legend button >> nth=1").click()
    assert shown > 0 and group.locator(".run1:visible").count() == 0


def test_a_telephone_needs_no_sideways_scrolling(context: _Context) -> None:
    page = context.open(viewport={"width": 360, "height": 740}, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Blind A/B test").click()
    page.get_by_role("button", name="Start").click()
    width, client = page.locator("dialog").evaluate("(d) => [d.scrollWidth, d.clientWidth]")
    assert width == client
    heights = page.locator("dialog button:visible").evaluate_all("(found) => found.map((b) => b.offsetHeight)")
    assert len(heights) > 6 and min(heights) >= 36  # for fingers


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(context: _Context, scheme: str) -> None:
    page = context.open(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = page.evaluate(CONTRAST)
    assert len(found) > 150 and found[0][0] >= 4.5, found[:5]
    backgrounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in backgrounds[4:-1].split(",")) < 200) == (scheme == "dark")
    page.evaluate("""() => { for (let n = 0; n < 8; n++) {
      const probe = document.createElement('p');
      probe.textContent = `colour ${n}`;
      probe.style.color = `var(--c${n})`;
      document.querySelector('.card').append(probe);
    } }""")
    colours = [ratio for ratio, what in page.evaluate(CONTRAST) if "colour " in what and what.startswith("P.")]
    assert len(colours) == 8 and colours[0] >= 3  # lines against the card: what WCAG asks of graphics


FOCUSED = """(() => { const e = document.activeElement, s = getComputedStyle(e);
  return [s.outlineStyle !== 'none' && e.matches(':focus-visible'), `${e.tagName}.${e.className} ${e.id}`]; })()"""


def test_the_keyboard_reaches_everything(context: _Context) -> None:
    page = context.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, select, [role=region]')].filter((e) => e.checkVisibility()
      && !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length))).length""")
    assert unnamed == 0
    assert page.locator("table:not(:has(caption)), th:not([scope])").count() == 0
    seen = []
    for _ in range(70):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
    assert [what for visible, what in seen if not visible and not what.startswith("BODY")] == []  # the end of the page
    assert len({what for _, what in seen}) > 8


def test_on_paper_the_controls_are_gone(context: _Context) -> None:
    page = context.open()
    page.emulate_media(media="print")
    assert page.locator("nav:visible, .tools:visible, audio:visible, dialog:visible").count() == 0
    assert page.locator("#scores table:visible").count() == 1
