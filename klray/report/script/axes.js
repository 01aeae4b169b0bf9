// Axes of a chart: linear or logarithmic, ticks of round numbers.

import { ink } from "./colours.js";
import { significant } from "./format.js";

export const MARGIN = { left: 64, right: 16, top: 10, bottom: 42 };

export class Axis {
  // From low to high in pixels start to end (which may lie before start).
  constructor(low, high, start, end, log) {
    if (log) [low, high] = [Math.max(low, 1e-12), Math.max(high, 1e-12)];
    if (!(high > low)) [low, high] = log ? [low / 2, low * 2] : [low - 0.5, low + 0.5];
    Object.assign(this, { low, high, start, end, log });
  }

  at(value) {
    const { low, high, start, end, log } = this;
    const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    return start + share * (end - start);
  }

  ticks() {
    const found = [], { low, high, log } = this;
    if (log) {
      const decades = Math.log10(high / low), steps = decades > 5 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 3, 5, 7];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) found.push(...steps.map((step) => step * 10 ** power));
    } else {
      const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
      for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(at * step);
    }
    return found.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9) + (log ? 0 : 1e-12));
  }
}

const label = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 || Number.isInteger(value) ? value.toLocaleString("en-US") : Math.abs(value) < 1e-4 ? significant(value, 1) : String(+value.toPrecision(3)));

// Grid, ticks and names of both axes.
export function frame(pen, x, y, [below, beside]) {
  const soft = ink("soft"), line = ink("line");
  for (const tick of y.ticks()) {
    pen.line([[x.start, y.at(tick)], [x.end, y.at(tick)]], line);
    pen.text(x.start - 8, y.at(tick), label(tick), soft, { align: "right" });
  }
  let last = -Infinity;
  for (const tick of x.ticks()) {
    if (x.at(tick) - last < 46) continue;
    last = x.at(tick);
    pen.line([[last, y.start], [last, y.start + 4]], soft);
    pen.text(last, y.start + 14, label(tick), soft, { align: "center" });
  }
  pen.line([[x.start, y.start], [x.end, y.start]], soft);
  pen.text((x.start + x.end) / 2, y.start + 33, below, soft, { align: "center" });
  pen.text(x.start - 52, (y.start + y.end) / 2, beside, soft, { align: "center", turn: -90 });
}
