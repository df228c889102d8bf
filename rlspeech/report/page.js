"use strict";
// Plain script of the report: players that share a position, filters and sorting, the blind comparison. No library, no network.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (query, root = document) => root.querySelector(query);
  const $$ = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, facts = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(facts)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };
  const say = (text) => { const status = $("#status"); if (status) status.textContent = text; };

  // -- what a reload must not lose; a browser may refuse it to files, then it lasts as long as the page ---------------------
  const memory = {};
  const storeName = `rlspeech.blind.${data.id}`;
  const store = {
    read() { try { return JSON.parse(localStorage.getItem(storeName)) || memory; } catch { return memory; } },
    write(all) { Object.assign(memory, all); try { localStorage.setItem(storeName, JSON.stringify(all)); } catch { /* see above */ } },
  };

  // -- a deck: several recordings of one utterance, one of them sounding, all at one position -------------------------------
  let sounding = null;
  const clock = (seconds) => `${seconds.toFixed(1)} s`;

  class Deck {
    constructor(tracks, length, keep, show) {
      Object.assign(this, { tracks, length, keep, show, at: 0, position: 0, playing: false });
      tracks.forEach((audio, index) => {
        audio.addEventListener("timeupdate", () => { if (index === this.at && this.playing) { this.position = audio.currentTime; show(this); } });
        audio.addEventListener("ended", () => { if (index === this.at) { this.playing = false; this.position = 0; show(this); } });
        audio.addEventListener("pause", () => { if (index === this.at && !audio.ended) { this.settle(); this.playing = false; show(this); } });
      });
    }
    settle() { if (this.playing) this.position = this.tracks[this.at].currentTime; } // between two of the browser's time updates
    play(index = this.at) {
      if (sounding && sounding !== this) sounding.pause();
      sounding = this;
      const before = this.tracks[this.at], audio = this.tracks[index];
      if (index !== this.at) {
        this.settle();
        if (!this.keep()) this.position = 0;
        this.at = index;
        before.pause();
      }
      if (audio.duration && this.position > audio.duration - 0.05) this.position = 0;
      audio.currentTime = this.position;
      this.playing = true;
      audio.play().catch((error) => { if (error.name !== "AbortError") { this.playing = false; this.show(this); say(`cannot play: ${error.message}`); } });
      this.show(this);
    }
    pause() { this.settle(); this.tracks[this.at].pause(); this.playing = false; this.show(this); }
    toggle(index = this.at) { if (this.playing && index === this.at) this.pause(); else this.play(index); }
    seek(seconds) {
      this.position = Math.max(0, Math.min(seconds, this.length - 0.01));
      this.tracks[this.at].currentTime = this.position;
      this.show(this);
    }
  }

  const transport = (place, name, deck) => {
    const button = make("button", { type: "button", "aria-label": `Play ${name}` }, "▶");
    const slider = make("input", { type: "range", min: 0, max: 1000, value: 0, "aria-label": `Position in ${name}` });
    const time = make("span", { className: "time" });
    button.addEventListener("click", () => deck().toggle());
    slider.addEventListener("input", () => deck().seek((slider.value / 1000) * deck().length));
    place.append(button, slider, time);
    place.hidden = false;
    return (now) => {
      button.textContent = now.playing ? "❚❚" : "▶";
      button.setAttribute("aria-label", `${now.playing ? "Pause" : "Play"} ${name}`);
      if (document.activeElement !== slider || now.playing) slider.value = now.length ? (1000 * now.position) / now.length : 0;
      slider.setAttribute("aria-valuetext", `${clock(now.position)} of ${clock(now.length)}`);
      time.textContent = `${now.position.toFixed(1)} / ${clock(now.length)}`;
    };
  };

  // -- clips ----------------------------------------------------------------------------------------------------------------
  let keepBox = null, current = null;
  const cards = $$("article.clip").map((card, index) => {
    const facts = data.clips[index];
    const figures = $$("figure", card).filter((figure) => $("audio", figure));
    const entry = { card, facts, index, deck: null };
    card.addEventListener("focusin", () => { current = entry; });
    card.addEventListener("pointerdown", () => { current = entry; });
    if (!figures.length) return entry;
    let draw = () => {};
    const picks = [];
    const show = (deck) => {
      draw(deck);
      card.classList.toggle("now", deck.playing);
      figures.forEach((figure, n) => {
        const on = n === deck.at && (deck.playing || deck.position > 0);
        figure.classList.toggle("on", on);
        picks[n].setAttribute("aria-pressed", on && deck.playing);
        $(".head", figure).style.left = `${deck.length ? (100 * deck.position) / deck.length : 0}%`;
      });
    };
    const tracks = figures.map((figure) => $("audio", figure));
    entry.deck = new Deck(tracks, facts.seconds, () => !keepBox || keepBox.checked, show);
    figures.forEach((figure, n) => {
      tracks[n].controls = false;
      const name = $(".name", figure);
      const pick = make("button", { type: "button", className: "pick", "aria-pressed": "false" });
      if (n < 9) pick.append(make("kbd", {}, String(n + 1)));
      name.replaceWith(pick);
      pick.append(name);
      picks.push(pick);
      pick.addEventListener("click", () => entry.deck.toggle(n));
      $(".spec", figure).addEventListener("click", (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        entry.deck.at === n || entry.deck.play(n);
        entry.deck.seek(((event.clientX - box.left) / box.width) * entry.deck.length);
        if (!entry.deck.playing) entry.deck.play(n);
      });
    });
    card.classList.add("live");
    draw = transport($(".transport", card), facts.key, () => entry.deck);
    show(entry.deck);
    return entry;
  });

  // -- filters and order ----------------------------------------------------------------------------------------------------
  const chosen = { label: "", words: "" };
  const shown = () => cards.filter((entry) => !entry.card.hidden);
  const up = (metric) => (data.metrics.find((m) => m.name === metric) || { up: true }).up;
  const score = (entry, system, metric) => {
    const player = entry.facts.players.find((p) => p.system === system);
    const value = player && player.scores[metric];
    return typeof value === "number" ? value : null;
  };

  const tools = $("#tools");
  if (tools) {
    tools.hidden = false;
    const place = $("#controls");
    const option = (value, text) => make("option", { value }, text);
    const names = [...new Set(cards.flatMap((entry) => entry.facts.players.flatMap((p) => Object.keys(p.scores).filter((k) => p.scores[k] !== null))))];
    const rated = [...new Set(cards.flatMap((entry) => entry.facts.players.filter((p) => Object.values(p.scores).some((v) => v !== null)).map((p) => p.system)))];
    const controls = {};

    const arrange = () => {
      for (const { card, facts } of cards) {
        const text = `${facts.key} ${card.textContent}`.toLowerCase();
        card.hidden = (chosen.label && facts.label !== chosen.label) || !text.includes(chosen.words);
        if (card.hidden && sounding === cards[card.dataset.clip].deck) sounding.pause();
      }
      const metric = controls.metric ? controls.metric.value : "";
      const system = metric && Number(controls.system.value), other = metric && controls.other ? Number(controls.other.value) : -1;
      for (const part of controls.only || []) part.hidden = !metric;
      const value = (entry) => {
        const here = score(entry, system, metric), there = other >= 0 ? score(entry, other, metric) : 0;
        return here === null || there === null ? null : here - there;
      };
      const sign = (up(metric) ? 1 : -1) * (controls.order && controls.order.value === "best" ? -1 : 1);
      const order = cards.map((entry) => ({ entry, value: metric ? value(entry) : entry.index }));
      order.sort((a, b) => (a.value === null) - (b.value === null) || (metric ? sign : 1) * (a.value - b.value) || a.entry.index - b.entry.index);
      for (const { entry, value: found } of order) {
        const chip = $(".gain", entry.card);
        chip.hidden = !metric || found === null;
        if (!chip.hidden) chip.textContent = `${metric} ${other >= 0 && found >= 0 ? "+" : ""}${found.toFixed(3).replace("-", "−")}`;
        if (order.length > 1) $("#clips").append(entry.card);
      }
      say(`${shown().length} of ${cards.length} clips are shown`);
      $$(".chip[data-label]", tools).forEach((chip) => chip.setAttribute("aria-pressed", chip.dataset.label === chosen.label));
      if (sounding && sounding.playing && !sounding.tracks[sounding.at].paused) sounding.show(sounding);
    };

    $$(".chip[data-label]", tools).forEach((chip) => chip.addEventListener("click", () => { chosen.label = chip.dataset.label; arrange(); }));
    if (cards.length > 1 && names.length) {
      controls.metric = make("select", {}, option("", "as listed"), ...names.map((name) => option(name, name)));
      controls.system = make("select", { "aria-label": "of which system" }, ...rated.map((s) => option(s, data.systems[s])));
      const base = data.systems.indexOf(data.baseline);
      controls.system.value = String([...data.compared, ...[...rated].reverse()].find((s) => rated.includes(s) && s !== base) ?? rated[0]);
      controls.order = make("select", { "aria-label": "which first" }, option("worst", "worst first"), option("best", "best first"));
      controls.only = [make("label", {}, "of ", controls.system)];
      if (rated.length > 1) {
        controls.other = make("select", { "aria-label": "compared with" }, option(-1, "nothing"), ...rated.map((s) => option(s, data.systems[s])));
        controls.other.value = String(rated.includes(base) ? base : rated[0]);
        controls.only.push(make("label", {}, "against ", controls.other));
      }
      controls.only.push(make("label", {}, controls.order));
      place.append(make("label", {}, rated.length > 1 ? "Sort by difference in " : "Sort by ", controls.metric), ...controls.only);
      [controls.metric, controls.system, controls.other, controls.order].forEach((select) => select && select.addEventListener("change", arrange));
    }
    if (cards.length > 4) {
      const find = make("input", { type: "search", autocomplete: "off" });
      find.addEventListener("input", () => { chosen.words = find.value.trim().toLowerCase(); arrange(); });
      place.append(make("label", {}, "Find ", find));
    }
    if (cards.some((entry) => entry.deck && entry.deck.tracks.length > 1)) {
      keepBox = make("input", { type: "checkbox", checked: true });
      place.append(make("label", { className: "check" }, keepBox, "same position when switching"));
    }
    if (tools.dataset.blind === "yes") place.append(make("button", { type: "button", className: "main", id: "blind-open" }, "Blind A/B test"));
    place.append(make("span", { className: "soft small keys" }, make("kbd", {}, "1"), " … ", make("kbd", {}, "9"), " switch · ", make("kbd", {}, "space"),
      " play · ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " seek · ", make("kbd", {}, "J"), " ", make("kbd", {}, "K"), " next and previous clip"));
    arrange();
  }

  const typing = (target) => target.closest("select, textarea, input:not([type=range]):not([type=checkbox])");
  const modified = (event) => event.ctrlKey || event.metaKey || event.altKey;

  document.addEventListener("keydown", (event) => {
    if (modified(event) || typing(event.target) || $("dialog[open]")) return;
    const playable = cards.length ? [...$$("article.clip")].map((card) => cards[card.dataset.clip]).filter((e) => e.deck && !e.card.hidden) : [];
    if (!playable.length) return;
    if (!playable.includes(current)) current = null;
    const key = event.key.toLowerCase();
    if (key === "j" || key === "k") {
      const next = current ? playable.indexOf(current) + (key === "j" ? 1 : -1) : 0;
      current = playable[Math.max(0, Math.min(next, playable.length - 1))];
      $(".transport button", current.card).focus();
      current.card.scrollIntoView({ block: "nearest" });
      return;
    }
    const { deck } = current || playable[0];
    if (/^[1-9]$/.test(key) && key <= deck.tracks.length) {
      current = current || playable[0];
      deck.play(Number(key) - 1);
      current.card.scrollIntoView({ block: "nearest" });
      event.preventDefault();
    } else if (current && key === " " && !event.target.closest("button, summary, a, input, [tabindex='0']")) {
      deck.toggle();
      event.preventDefault();
    } else if (current && (key === "arrowleft" || key === "arrowright") && !event.target.closest("input, [role=region], pre")) {
      deck.settle();
      deck.seek(deck.position + (key === "arrowleft" ? -1 : 1));
      event.preventDefault();
    }
  });

  // -- copying, legends, print ----------------------------------------------------------------------------------------------
  const copy = async (text, source) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* an old browser, or a page that may not */ }
    getSelection().selectAllChildren(source);
    try { return document.execCommand("copy"); } catch { return false; }
  };
  $$(".copyable").forEach((box) => {
    const button = make("button", { type: "button" }, "Copy"), source = $("pre", box);
    button.addEventListener("click", async () => {
      button.textContent = (await copy(source.textContent, source)) ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
    box.append(button);
  });
  $$(".legend li").forEach((item) => {
    const button = make("button", { type: "button", "aria-pressed": "true" }, ...item.childNodes);
    const group = item.closest("details");
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      $$(`.run${item.dataset.run}`, group).forEach((part) => { part.style.display = on ? "" : "none"; });
    });
    item.append(button);
  });
  addEventListener("beforeprint", () => $$("details").forEach((part) => { part.open = true; }));

  // -- blind comparison -----------------------------------------------------------------------------------------------------
  // Random numbers from a seed (mulberry32), so that an exported order can be made again.
  const random = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const shuffled = (items, next) => {
    const list = [...items];
    for (let i = list.length - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [list[i], list[j]] = [list[j], list[i]];
    }
    return list;
  };
  // Wilson's score interval of a share, 95 %: right also for few votes and for shares near 0 and 1.
  const wilson = (wins, n, z = 1.959963984540054) => {
    if (!n) return [0, 1];
    const p = wins / n, middle = (p + (z * z) / (2 * n)) / (1 + (z * z) / n);
    const half = ((z / (1 + (z * z) / n)) * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n)));
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  };
  const plan = (clips, seed) => { // balanced: A is the first system in half of the pairs
    const next = random(seed);
    const sides = shuffled(clips.map((_, i) => i % 2), next);
    return shuffled(clips, next).map((clip, i) => ({ clip, a: sides[i], vote: null, heard: [0, 0] }));
  };
  const cell = (value) => { // a spreadsheet must not take a file name for a formula
    const text = String(value ?? "");
    return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  };
  const outcome = (test) => {
    const voted = test.pairs.filter((p) => p.vote);
    const counts = [0, 0];
    voted.forEach((p) => { if (p.vote !== "none") counts[p.vote === "a" ? p.a : 1 - p.a] += 1; });
    const n = counts[0] + counts[1], [lo, hi] = wilson(counts[1], n);
    return { pairs: test.pairs.length, voted: voted.length, first: counts[0], second: counts[1], none: voted.length - n, n,
      share: n ? counts[1] / n : null, lo, hi };
  };

  const dialog = $("#blind");
  const blind = { test: null, deck: null, saveName: null };
  const percent = (share) => `${Math.round(100 * share)} %`;
  const rowsOf = (test) => test.pairs.map((pair, n) => {
    const sides = [pair.a, 1 - pair.a].map((s) => data.systems[test.systems[s]]);
    return { pair: n + 1, clip: data.clips[pair.clip].key, a: sides[0], b: sides[1], vote: pair.vote,
      preferred: pair.vote === "a" ? sides[0] : pair.vote === "b" ? sides[1] : pair.vote === "none" ? "none" : null, heard_a: pair.heard[0], heard_b: pair.heard[1] };
  });
  const exported = (test, kind) => {
    const rows = rowsOf(test);
    if (kind === "csv") {
      const names = ["pair", "clip", "a", "b", "vote", "preferred", "heard_a", "heard_b"];
      const extra = { listener: test.listener, seed: test.seed, equal_loudness: test.matched };
      return [[...names, ...Object.keys(extra)].map(cell), ...rows.map((row) => [...names.map((k) => cell(row[k])), ...Object.values(extra).map(cell)])]
        .map((line) => line.join(",")).join("\r\n") + "\r\n";
    }
    const { share, lo, hi, ...counts } = outcome(test);
    const names = test.systems.map((s) => data.systems[s]);
    return JSON.stringify({ report: data.title, report_id: data.id, systems: names, listener: test.listener, seed: test.seed, equal_loudness: test.matched,
      looked_after: test.seen, started: test.started, saved: new Date().toISOString(), result: { ...counts, share_of: names[1], share, interval: [lo, hi], method: "Wilson, 95 %" }, votes: rows }, null, 2) + "\n";
  };
  window.rlspeech = { wilson, plan, exported, outcome }; // for whoever wants to look into the page

  if (!dialog) return;
  const both = (x, y, some) => (some ? shown() : cards).filter(({ facts }) => [x, y].every((s) => facts.players.some((p) => p.system === s && p.audio))).map((e) => e.index);
  const x = $("#blind-x"), y = $("#blind-y"), seed = $("#blind-seed"), level = $("#blind-level"), some = $("#blind-some"), listener = $("#blind-listener");
  const audible = data.systems.map((name, s) => s).filter((s) => cards.some(({ facts }) => facts.players.some((p) => p.system === s && p.audio)));
  const slot = () => `${x.value}|${y.value}`;
  const saved = () => { const test = store.read()[slot()]; return test && Array.isArray(test.pairs) && test.pairs.every((p) => cards[p.clip]) ? test : null; };
  const keep = () => { const all = store.read(); all[blind.slot] = blind.test; store.write(all); };
  const stage = (name, focus) => {
    $$("[data-stage]", dialog).forEach((part) => { part.hidden = part.dataset.stage !== name; });
    dialog.dataset.now = name;
    if (focus) $(focus).focus();
  };
  const setup = () => {
    const clips = x.value === y.value ? [] : both(Number(x.value), Number(y.value), some.checked);
    const old = saved();
    const done = old ? old.pairs.filter((p) => p.vote).length : 0;
    $("#blind-start").disabled = !clips.length;
    $("#blind-start").textContent = done ? "Start anew" : "Start";
    $("#blind-resume").hidden = !done;
    $("#blind-resume").textContent = old && done === old.pairs.length ? "See the result" : `Go on (${done} of ${old ? old.pairs.length : 0} voted)`;
    $("#blind-info").textContent = clips.length ? `${clips.length} pairs` : x.value === y.value ? "Choose two different systems." : "No clip has sound of both.";
  };
  const open = () => {
    if (sounding) sounding.pause();
    seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
    setup();
    stage("setup");
    dialog.showModal();
    $("#blind-title").focus();
  };
  const stop = () => { if (blind.deck) { blind.deck.pause(); blind.deck.tracks.forEach((a) => a.removeAttribute("src")); } blind.deck = null; };
  const drawTransport = transport($("[data-stage=trial] .transport", dialog), "the pair", () => blind.deck);

  const trial = () => {
    stop();
    const { test } = blind, pair = test.pairs[test.now], { facts, card } = cards[pair.clip];
    const places = [pair.a, 1 - pair.a].map((side) => facts.players.findIndex((p) => p.system === test.systems[side]));
    const levels = places.map((p) => facts.players[p].level), quiet = Math.min(...levels);
    const sources = places.map((p) => $(`figure[data-player="${p}"] audio`, card));
    const tracks = sources.map((source, n) => {
      const audio = new Audio(source.src);
      audio.preload = "auto";
      if (test.matched) audio.volume = Math.max(0.02, 10 ** ((quiet - levels[n]) / 20));
      return audio;
    });
    // a phone that leaves the volume to its keys says so here, and the export with it
    if (test.matched && Math.abs(tracks[levels[0] < levels[1] ? 1 : 0].volume - Math.max(0.02, 10 ** (-Math.abs(levels[0] - levels[1]) / 20))) > 0.01) test.matched = false;
    const show = (deck) => {
      drawTransport(deck);
      $$("[data-hear]", dialog).forEach((button, n) => button.setAttribute("aria-pressed", deck.playing && deck.at === n));
      const heard = pair.heard.every(Boolean) || pair.vote;
      $$("[data-vote]", dialog).forEach((button) => { button.disabled = !heard; button.setAttribute("aria-pressed", pair.vote === button.dataset.vote); });
      const hint = heard ? "" : "Listen to both first.";
      if ($("#blind-hint").textContent !== hint) $("#blind-hint").textContent = hint;
    };
    blind.deck = new Deck(tracks, facts.seconds, () => true, show);
    $("#blind-count").textContent = `Pair ${test.now + 1} of ${test.pairs.length}`;
    Object.assign($("#blind-progress"), { max: test.pairs.length, value: test.pairs.filter((p) => p.vote).length });
    $("#blind-back").disabled = test.now <= test.seen;
    show(blind.deck);
    keep();
    stage("trial", "#blind-count");
  };
  const hear = (n) => { const pair = blind.test.pairs[blind.test.now]; if (!(blind.deck.playing && blind.deck.at === n)) pair.heard[n] += 1; blind.deck.toggle(n); };
  const playPause = () => { if (blind.deck.playing) blind.deck.pause(); else hear(blind.deck.at); };
  const vote = (choice) => {
    const { test } = blind, pair = test.pairs[test.now];
    if (!pair.heard.every(Boolean) && !pair.vote) return;
    pair.vote = choice;
    test.now += 1;
    keep();
    if (test.now < test.pairs.length) trial(); else result();
  };
  const result = () => {
    stop();
    const { test } = blind, got = outcome(test), names = test.systems.map((s) => data.systems[s]);
    test.seen = got.voted; // these are unveiled: no way back to them
    keep();
    const leads = got.share >= 0.5 ? 1 : 0, part = leads ? [got.share, got.lo, got.hi] : [1 - got.share, 1 - got.hi, 1 - got.lo];
    const clear = got.n > 0 && (got.lo > 0.5 || got.hi < 0.5);
    const tied = got.n > 0 && got.first === got.second;
    $("#blind-verdict").textContent = !got.n ? "No vote with a preference yet."
      : tied ? `No winner: ${got.first} votes each.`
        : `${names[leads]} was preferred in ${Math.max(got.first, got.second)} of ${got.n} votes with a preference: ${percent(part[0])}.`;
    const lines = [];
    if (got.n) {
      lines.push(`95 % interval of that share: ${percent(part[1])} to ${percent(part[2])} (Wilson). `
        + (clear ? "It excludes one half: this listener prefers it, on these clips." : "It includes one half: these votes do not show a preference."));
    }
    lines.push(`${got.voted} of ${got.pairs} pairs voted: ${names[0]} ${got.first}, ${names[1]} ${got.second}, no preference ${got.none}`
      + (got.none ? ", which count for neither." : "."));
    lines.push(`${test.matched ? "Played at equal loudness" : "Played at the levels of the files"}, order by seed ${test.seed}.`);
    $("#blind-words").replaceChildren(...lines.map((line, n) => make("p", { className: n ? "soft small" : "" }, line)));
    const bar = make("div", { className: "share" });
    [["x", got.first, names[0]], ["none", got.none, "none"], ["y", got.second, names[1]]].forEach(([kind, count, name]) => {
      if (!count) return;
      const segment = make("span", { className: kind }, `${name} ${count}`);
      segment.style.flex = String(count);
      bar.append(segment);
    });
    $("#blind-share").replaceChildren(bar);
    $("#blind-votes").replaceChildren(...rowsOf(test).filter((row) => row.vote).map((row) => make("tr", {}, make("th", { scope: "row" }, row.clip),
      ...[row.a, row.b, row.preferred].map((text) => make("td", {}, text)))));
    $("#blind-more").hidden = got.voted === got.pairs;
    stage("result", "#blind-verdict");
  };

  audible.forEach((s) => [x, y].forEach((select) => select.append(make("option", { value: String(s) }, data.systems[s]))));
  const base = data.systems.indexOf(data.baseline);
  x.value = String(audible.includes(base) ? base : audible[0]);
  y.value = String([...data.compared, ...[...audible].reverse()].find((s) => audible.includes(s) && String(s) !== x.value));
  [x, y, some].forEach((part) => part.addEventListener("change", setup));
  $("#blind-open").addEventListener("click", open);
  $("#blind-start").addEventListener("click", () => {
    const systems = [Number(x.value), Number(y.value)], number = (Number(seed.value) || 0) >>> 0;
    blind.slot = slot();
    blind.test = { systems, seed: number, matched: level.checked, listener: listener.value.trim(), started: new Date().toISOString(),
      pairs: plan(both(...systems, some.checked), number), now: 0, seen: 0 };
    trial();
  });
  $("#blind-resume").addEventListener("click", () => {
    blind.slot = slot();
    blind.test = saved();
    if (blind.test.pairs.every((p) => p.vote)) result(); else { blind.test.now = Math.max(0, blind.test.pairs.findIndex((p) => !p.vote)); trial(); }
  });
  $("#blind-back").addEventListener("click", () => { if (blind.test.now > blind.test.seen) { blind.test.now -= 1; trial(); } });
  $("#blind-done").addEventListener("click", result);
  $("#blind-more").addEventListener("click", () => { blind.test.now = blind.test.pairs.findIndex((p) => !p.vote); trial(); });
  $("#blind-new").addEventListener("click", () => { seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]); setup(); stage("setup", "#blind-title"); });
  $(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => { stop(); $("#blind-open").focus(); });
  $$("[data-hear]", dialog).forEach((button) => button.addEventListener("click", () => hear(Number(button.dataset.hear))));
  $$("[data-vote]", dialog).forEach((button) => button.addEventListener("click", () => vote(button.dataset.vote)));
  $$("[data-save]", dialog).forEach((button) => button.addEventListener("click", () => {
    const kind = button.dataset.save, types = { json: "application/json", csv: "text/csv;charset=utf-8" };
    const link = make("a", { href: URL.createObjectURL(new Blob([exported(blind.test, kind)], { type: types[kind] })),
      download: `votes-${blind.test.listener.replace(/[^A-Za-z0-9]+/g, "-") || "listener"}-${blind.test.seed}.${kind}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }));
  dialog.addEventListener("keydown", (event) => {
    if (dialog.dataset.now !== "trial" || modified(event) || typing(event.target)) return;
    const key = event.key.toLowerCase();
    const votes = { 1: "a", 2: "b", 0: "none" };
    if (key === "a" || key === "b") hear(key === "a" ? 0 : 1);
    else if (key in votes) vote(votes[key]);
    else if (key === "backspace") $("#blind-back").click();
    else if (key === " " && !event.target.closest("button")) playPause();
    else return;
    event.preventDefault();
  });
})();
