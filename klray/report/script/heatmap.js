// KL of all pairs that the page carries, by run and family, on a log scale of colours.

import { Chart } from "./chart.js";
import { ink, shade, viridis } from "./colours.js";
import { nameOf, pairKl, triangle } from "./data.js";
import { el } from "./dom.js";
import { significant, withError } from "./format.js";

const LEFT = 120, BELOW = 84, BAR = 74;

export class HeatMap extends Chart {
  // data.heat: {order: models, blocks: [{name, size}], low, high}
  constructor(place, name, label, card, data, choose) {
    super(place, name, label, card, (width) => Math.min(width - BAR, 760) + BELOW - LEFT * (width > 520 ? 1 : 0.6));
    Object.assign(this, { data, choose });
    this.place.append(el("p", { className: "soft" }, "A click chooses the two models."));
  }

  share(kl) {
    const { low, high } = this.data.heat;
    return Math.log(Math.max(kl, low) / low) / Math.log(high / low);
  }

  // Once: colours do not depend on size or theme.
  colours() {
    if (this.kept) return this.kept;
    const { heat, pairs } = this.data, n = heat.order.length, colours = new Uint8ClampedArray(4 * n * n).fill(255);
    const table = Array.from({ length: 256 }, (_, at) => viridis(at / 255));
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const a = pairs.place[heat.order[i]], b = pairs.place[heat.order[j]];
        const kl = a === b ? 0 : pairs.kl[triangle(Math.min(a, b), Math.max(a, b), pairs.models.length)];
        colours.set(Number.isFinite(kl) ? table[Math.round(255 * Math.min(this.share(kl), 1))] : [150, 155, 160], 4 * (i * n + j));
      }
    }
    return (this.kept = colours);
  }

  box() {
    const [width, height] = this.size(), left = width > 520 ? LEFT : LEFT * 0.6;
    return { left, side: Math.min(width - left - BAR, height - BELOW) };
  }

  draw(pen) {
    const { heat } = this.data, n = heat.order.length, { left, side } = this.box(), soft = ink("soft");
    pen.clear(pen === this.pen ? "" : ink("page"));
    pen.cells(left, 0, side, side, n, this.colours());
    let start = 0;
    for (const { name, size } of heat.blocks) {
      const middle = left + ((start + size / 2) / n) * side, edge = (start / n) * side;
      if (start) for (const line of [[[left + edge, 0], [left + edge, side]], [[left, edge], [left + side, edge]]]) pen.line(line, ink("page"), 1);
      if ((size / n) * side > 13) {
        const words = name.length > 20 ? `${name.slice(0, 18)}…` : name;
        pen.text(left - 6, middle - left, words, soft, { align: "right", size: 10 });
        pen.text(middle, side + 8, words, soft, { align: "right", turn: -35, size: 10 });
      }
      start += size;
    }
    const bar = left + side + 14;
    for (let at = 0; at < 60; at++) pen.box(bar, side - ((at + 1) / 60) * side, 12, side / 60 + 0.5, `rgb(${viridis(at / 59)})`);
    for (let power = Math.ceil(Math.log10(heat.low)); power <= Math.log10(heat.high); power++) {
      for (const step of Math.log10(heat.high / heat.low) > 2 ? [1] : [1, 2, 5]) {
        const value = step * 10 ** power;
        if (value <= heat.high) pen.text(bar + 17, side * (1 - this.share(value)), String(+value.toPrecision(2)), soft, { size: 10 });
      }
    }
  }

  find(x, y) {
    const { order } = this.data.heat, { left, side } = this.box(), n = order.length;
    const [row, column] = [Math.floor((y / side) * n), Math.floor(((x - left) / side) * n)];
    if (row < 0 || column < 0 || row >= n || column >= n) return null;
    const [one, other] = [order[row], order[column]], found = pairKl(this.data, one, other);
    const value = found ? `${withError(found.kl, found.se)} bits/byte` : "no KL: excluded";
    return { show: [el("strong", {}, value), el("p", {}, nameOf(this.data, one)), el("p", {}, nameOf(this.data, other))], press: () => this.choose(one, other) };
  }

  rows() {
    const { order } = this.data.heat, rows = [];
    order.forEach((one, at) => order.slice(at + 1).forEach((other) => {
      const found = pairKl(this.data, one, other);
      rows.push([nameOf(this.data, one), nameOf(this.data, other), found?.kl ?? NaN, found?.se ?? NaN]);
    }));
    return [["model", "other", "kl_bits_per_byte", "standard_error"], rows];
  }
}
