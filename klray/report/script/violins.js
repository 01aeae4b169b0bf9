// The scale: the KL of every setting's pairs as a violin and as points, with what was published.

import { Axis, frame } from "./axes.js";
import { Chart } from "./chart.js";
import { ink } from "./colours.js";
import { el } from "./dom.js";
import { integer, significant, withError } from "./format.js";

const ROW = 46, NAMES = 150;

export class Violins extends Chart {
  constructor(place, name, label, card, settings) {
    const drawn = settings.filter((each) => each.kl?.some((kl) => kl > 0));
    super(place, name, label, card, drawn.length * ROW + 52);
    this.settings = drawn;
  }

  draw(pen) {
    const [width, height] = this.size(), all = this.settings.flatMap((each) => [...each.kl].filter((kl) => kl > 0));
    const published = this.settings.flatMap((each) => each.published ?? []);
    const x = new Axis(Math.min(...all, ...published) / 1.2, Math.max(...all, ...published) * 1.2, NAMES, width - 16, true);
    const y = { start: height - 42, end: 0, ticks: () => [], at: () => 0 }, marks = [];
    pen.clear(pen === this.pen ? "" : ink("page"));
    for (const tick of x.ticks()) pen.line([[x.at(tick), 0], [x.at(tick), y.start]], ink("line"));
    frame(pen, x, y, ["KL (bits/byte)", ""]);
    this.settings.forEach((each, row) => {
      const middle = row * ROW + ROW / 2, kl = [...each.kl].filter((value) => value > 0);
      pen.text(NAMES - 12, middle - 7, each.name, ink("ink"), { align: "right", size: 12 });
      pen.text(NAMES - 12, middle + 8, `n = ${integer(each.n)}`, ink("soft"), { align: "right", size: 10 });
      if (kl.length >= 5) this.violin(pen, x, middle, kl);
      kl.forEach((value, at) => {
        const up = kl.length < 5 ? 0 : ((at * 0.618034) % 1) * 18 - 9; // spread evenly, the same each time
        pen.dot(x.at(value), middle + up, 2.2, ink("accent"), "", kl.length > 200 ? 0.45 : 0.75);
        marks.push({ x: x.at(value), y: middle + up, show: () => this.about(each, at + each.kl.length - kl.length) });
      });
      pen.line([[x.at(each.median), middle - 12], [x.at(each.median), middle + 12]], ink("ink"), 2);
      if (each.published) {
        const [low, high] = each.published.map((value) => x.at(value));
        if (high > low) pen.line([[low, middle + 15], [high, middle + 15]], ink("second"), 4, 0.9);
        else pen.area([[low, middle + 10], [low + 5, middle + 15], [low, middle + 20], [low - 5, middle + 15]], ink("second"), 1);
      }
    });
    if (pen === this.pen) this.marks = marks;
  }

  // Density in ln KL by a Gaussian kernel, bandwidth by Silverman's rule.
  violin(pen, x, middle, kl) {
    const logs = kl.map(Math.log), n = logs.length, mean = logs.reduce((a, b) => a + b) / n;
    const spread = Math.sqrt(logs.reduce((sum, each) => sum + (each - mean) ** 2, 0) / n);
    if (!(spread > 0)) return;
    const quantile = (share) => logs[Math.round(share * (n - 1))];
    const width = 0.9 * (Math.min(spread, (quantile(0.75) - quantile(0.25)) / 1.34) || spread) * n ** -0.2;
    const grid = Array.from({ length: 80 }, (_, at) => logs[0] + ((logs[n - 1] - logs[0]) * at) / 79);
    const density = grid.map((at) => logs.reduce((sum, each) => sum + Math.exp(-0.5 * ((at - each) / width) ** 2), 0));
    const most = Math.max(...density), side = (sign) => grid.map((at, place) => [x.at(Math.exp(at)), middle + (sign * 17 * density[place]) / most]);
    pen.area([...side(-1), ...side(1).reverse()], ink("accent"), 0.2);
  }

  about(setting, at) {
    const pair = setting.pairs?.[at];
    return [el("strong", {}, `${setting.name}: ${withError(setting.kl[at], setting.se?.[at])} bits/byte`),
      ...(pair ? pair.map((name) => el("p", {}, name)) : [el("p", { className: "soft" }, "one of the quantiles that stand for all pairs")]),
      el("p", { className: "soft" }, `median ${significant(setting.median)}`)];
  }

  find(x, y) {
    return this.nearestMark(x, y);
  }

  rows() {
    return [["setting", "kl_bits_per_byte", "standard_error", "first", "second"],
      this.settings.flatMap((each) => [...each.kl].map((kl, at) => [each.name, kl, each.se?.[at] ?? NaN, ...(each.pairs?.[at] ?? ["", ""])]))];
  }
}
