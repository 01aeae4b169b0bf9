// What the colours mean; a press on a group dims it or shows it again.

import { shade } from "./colours.js";
import { button, el } from "./dom.js";
import { integer } from "./format.js";

const LISTED = 40; // groups that are listed

// scale: of colours.js; hidden: names of groups; toggle(name), all().
export function legend(scale, hidden, words, toggle, all) {
  if (scale.shares) {
    const steps = Array.from({ length: 12 }, (_, at) => el("i", { style: `background:${shade(at / 11)}` }));
    const ends = el("div", { className: "ends" }, el("span", {}, integer(scale.low)), el("span", {}, integer(scale.high)));
    return [el("div", { className: "ramp" }, steps), ends, el("p", { className: "soft" }, words)];
  }
  const entries = scale.names.slice(0, LISTED).map((name, group) => {
    const mark = el("i", { style: `background:${scale.colour(group)}` });
    const count = el("span", { className: "soft" }, integer(scale.counts[group]));
    return button([mark, el("span", {}, name), count], () => toggle(name), { className: "entry", "aria-pressed": String(!hidden.has(name)) });
  });
  const more = scale.names.length - LISTED;
  return [
    el("div", { className: "entries" }, entries),
    more > 0 ? el("p", { className: "soft" }, `and ${integer(more)} more, in grey; the search finds them`) : null,
    hidden.size ? button("Show all", all, { className: "link" }) : null,
  ].filter(Boolean);
}
