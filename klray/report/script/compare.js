// Two models: how far apart, like what on the scale, on which domains, by which texts; and what the page does not carry.

import { ink } from "./colours.js";
import { nameOf, pairKl } from "./data.js";
import { differing, divergence } from "./divergence.js";
import { button, el, table } from "./dom.js";
import { integer, significant, withError } from "./format.js";
import { CanvasPen } from "./pen.js";
import { likeness } from "./place.js";
import { search } from "./search.js";

const TEXTS = 8;

// What the page knows by itself of two models.
export function comparison(data, pair, choose) {
  const [one, other] = pair, slots = slotsOf(data, pair, choose);
  if (one === undefined || other === undefined) return [slots];
  const found = pairKl(data, one, other);
  return [slots, found ? answerOf(data, pair, found) : absent(data, one, other)];
}

// Which two are chosen, with a search for each; one that is not chosen is undefined.
export function slotsOf(data, pair, choose) {
  return el("div", { className: "slots" }, pair.map((model, place) => slot(data, "AB"[place], model, place, choose)));
}

function slot(data, letter, model, place, choose) {
  return el("div", { className: "slot" },
    el("b", { className: "letter" }, letter),
    model === undefined ? el("span", { className: "soft" }, data.maps.length ? "click a point, or search" : "search") : el("span", { className: "name" }, nameOf(data, model)),
    model === undefined ? null : button("×", () => choose(place, null), { className: "link", "aria-label": `Leave out ${letter}` }),
    search(data, `Choose ${letter}`, (found) => choose(place, found)));
}

// KL ± SE of two models, where it falls on the scale, and what is inside it.
export function answerOf(data, [one, other], { kl, se }) {
  const number = el("p", { className: "number-big" },
    el("output", { "data-kl": String(kl), "data-se": String(se) }, withError(kl, se)), el("span", { className: "soft" }, " bits/byte"));
  const place = data.scale ? [el("p", { className: "likeness" }, likeness(kl, data.scale)), gauge(kl, data.scale), el("p", { className: "soft" }, data.scale.source)] : [];
  return el("div", { className: "answer" }, el("div", {}, number, place), el("div", {}, inside(data, one, other)));
}

// The exact words that give what is not here.
function absent(data, one, other) {
  const text = (model) => JSON.stringify(data.models.label[model]);
  const call = data.call.replace("{A}", () => text(one)).replace("{B}", () => text(other));
  const excluded = [one, other].filter((model) => data.models.excluded[model]);
  const why = excluded.length ? `${nameOf(data, excluded[0])} was excluded from the analysis, which has no KL of it.` : `The KL of this pair is not in this file. ${data.carried.pairs}`;
  return el("div", { className: "absent" }, el("p", {}, why), excluded.length ? null : el("pre", {}, call));
}

// Settings of the scale on a log axis, and where the number is among them.
function gauge(kl, scale) {
  const known = scale.settings.filter((each) => each.low > 0);
  const ends = [...known.flatMap((each) => [each.low, each.high]), kl].filter((each) => each > 0).map(Math.log10);
  const low = Math.min(...ends) - 0.2, high = Math.max(...ends) + 0.2, row = 17;
  const canvas = el("canvas", { className: "gauge", role: "img", "aria-label": `The scale, with ${significant(kl)} bits per byte marked on it` });
  const draw = () => {
    const width = canvas.clientWidth || 420, height = known.length * row + 26, left = Math.min(190, width * 0.42);
    canvas.style.height = `${height}px`;
    const pen = new CanvasPen(canvas, width, height);
    const x = (value) => left + ((Math.log10(value) - low) / (high - low)) * (width - left - 12);
    for (let power = Math.ceil(low); power <= high; power++) {
      pen.line([[x(10 ** power), 0], [x(10 ** power), height - 20]], ink("line"));
      pen.text(x(10 ** power), height - 9, String(+(10 ** power).toPrecision(1)), ink("soft"), { align: "center", size: 10 });
    }
    known.forEach((each, at) => {
      const y = at * row + row / 2;
      pen.text(left - 10, y, each.name, ink("soft"), { align: "right" });
      if (each.high > each.low) pen.line([[x(each.low), y], [x(each.high), y]], ink("accent"), 5, 0.7);
      else pen.dot(x(each.low), y, 4, ink("accent"), ink("page"));
    });
    if (kl > 0) pen.line([[x(kl), 0], [x(kl), height - 20]], ink("ink"), 2);
  };
  new ResizeObserver(draw).observe(canvas);
  return canvas;
}

// By domain and by text, from the rows that the page carries.
function inside(data, one, other) {
  const { rows } = data;
  const a = rows?.place[one] ?? -1, b = rows?.place[other] ?? -1;
  if (a < 0 || b < 0) return [el("p", { className: "soft" }, data.carried.rows)];
  const n = rows.bytes.length, row = (at) => rows.values.subarray(at * n, (at + 1) * n);
  const domains = [...new Set(rows.domain)].sort();
  const by = domains.map((domain) => {
    const texts = rows.domain.flatMap((each, text) => (each === domain ? [text] : []));
    return texts.length > 1 ? [domain || "(none)", integer(texts.length), divergence(row(a), row(b), rows.bytes, texts)] : null;
  }).filter(Boolean);
  const texts = differing(row(a), row(b), TEXTS), { content } = rows;
  return [
    el("h3", {}, "By domain"),
    table(["Domain", "Texts", "KL ± SE"], by.map(([domain, count, { kl, se }]) => [domain, count, el("span", { "data-kl": String(kl) }, withError(kl, se))])),
    el("h3", {}, "Texts that differ most"),
    table(["Text", "Domain", "Bytes", "A − B, nats", "Share of KL"], texts.map(({ text, nats, share }) => [
      content ? unfolding(rows.text[text], () => content(rows.text[text])) : integer(rows.text[text]), rows.domain[text], integer(rows.bytes[text]),
      (nats > 0 ? "+" : "−") + significant(Math.abs(nats)), `${significant(100 * share, 2)} %`]), 2),
    el("p", { className: "soft" }, "Text: its number in the snapshot. A − B: difference of the log-likelihoods, less its mean over the texts."),
  ];
}

// The text itself, fetched when a reader asks for it.
function unfolding(number, content) {
  const shown = el("pre", {}), whole = el("details", {}, el("summary", {}, integer(number)), shown);
  whole.addEventListener("toggle", async () => {
    if (whole.open) shown.textContent = await content().catch((error) => `This text cannot be shown: ${error.message}`);
  });
  return whole;
}
