// The map: every model a point, every run a path, on one or two panels that show the same choice.

import { ink } from "./colours.js";
import { el } from "./dom.js";
import { CanvasPen } from "./pen.js";
import { View, movable } from "./view.js";

const NEAR = 14; // pixels within which a point is the one that is meant
const CELL = 24; // pixels of the grid that finds it

const cellOf = (column, row) => (Math.floor(row) + 8) * 65536 + Math.floor(column) + 8;

// One panel: {name, title, xy (2K), axes}. `look` says of each model its colour and whether it is seen, dim or hidden.
export class Panel {
  constructor(spec, runs, listen) {
    Object.assign(this, { ...spec, runs, listen, view: new View(spec.xy), hovered: -1, picked: [] });
    const about = `${spec.title}. Arrow keys go from model to model, Enter chooses, plus and minus zoom, 0 shows all.`;
    this.canvas = el("canvas", { tabIndex: 0, role: "application", "aria-label": about });
    this.over = el("canvas", { className: "over", "aria-hidden": "true" });
    this.frame = el("div", { className: "panel" }, this.canvas, this.over);
    this.element = el("figure", { className: "map-panel" }, el("figcaption", {}, spec.title), this.frame);
    this.moving = movable(this.canvas, this.view, () => this.later(), (x, y) => this.press(x, y));
    this.canvas.addEventListener("pointermove", (event) => { if (!event.buttons) this.point(event); });
    this.canvas.addEventListener("pointerleave", () => listen.hover(-1));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  size() {
    return [this.view.width, this.view.height];
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width) return;
    this.view.fit(width, height);
    this.pen = new CanvasPen(this.canvas, width, height);
    this.overPen = new CanvasPen(this.over, width, height);
    this.redraw();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.redraw(); });
  }

  redraw() {
    if (!this.pen) return;
    this.pen.clear();
    this.draw(this.pen);
    this.mark();
  }

  // Draws with either pen; the screen's remembers where each point is.
  draw(pen) {
    const { xy, view, look } = this, n = xy.length / 2, onScreen = pen === this.pen;
    const places = new Float32Array(xy.length);
    const radius = (n > 3000 ? 2.5 : n > 600 ? 3 : 4) * Math.min(1 + 0.15 * Math.log2(Math.max(view.zoom, 1)), 1.8);
    const rim = ink("page"), grid = new Map();
    if (!onScreen) pen.clear(rim);
    const { unit } = view, [left, top] = view.toScreen(0, 0);
    for (let at = 0; at < 2 * n; at += 2) {
      places[at] = left + unit * xy[at];
      places[at + 1] = top - unit * xy[at + 1];
    }
    const seen = (at) => look.state[at] < 2 && Number.isFinite(places[2 * at]);
    for (const run of this.runs) this.path(pen, run, places, seen);
    for (const dim of [1, 0]) {
      pen.stamps(radius, rim, dim ? 0.08 : 1, (stamp) => {
        for (let at = 0; at < n; at++) {
          if (look.state[at] !== dim || !seen(at)) continue;
          const x = places[2 * at], y = places[2 * at + 1];
          if (x < -9 || y < -9 || x > view.width + 9 || y > view.height + 9) continue;
          stamp(x, y, look.colour(at));
          if (dim) continue;
          const cell = cellOf(x / CELL, y / CELL), there = grid.get(cell);
          if (there) there.push(at);
          else grid.set(cell, [at]);
        }
      });
    }
    this.axes(pen);
    if (onScreen) Object.assign(this, { places, grid, radius });
  }

  // Neighbouring checkpoints joined, in the colour of the later one where it is bright, once for each colour.
  path(pen, run, places, seen) {
    let stretch = [], colour = "", dim = 0;
    const flush = () => { if (stretch.length > 1) pen.line(stretch, colour, 1, dim ? 0.05 : 0.5); };
    for (const at of run) {
      if (!seen(at)) continue;
      const place = [places[2 * at], places[2 * at + 1]], of = this.look.line(at), state = this.look.state[at];
      if (of !== colour || state !== dim) {
        flush();
        stretch = stretch.slice(-1);
        [colour, dim] = [of, state];
      }
      stretch.push(place);
    }
    flush();
  }

  axes(pen) {
    const { view } = this, soft = ink("soft");
    const [across, up] = this.axis.map((words) => words.length * 6 + 8), page = ink("page"); // about as wide as the words
    pen.box(view.width / 2 - across / 2, view.height - 17, across, 16, page, 0.8);
    pen.text(view.width / 2, view.height - 9, this.axis[0], soft, { align: "center" });
    pen.box(2, view.height / 2 - up / 2, 16, up, page, 0.8);
    pen.text(10, view.height / 2, this.axis[1], soft, { align: "center", turn: -90 });
    if (!this.unit) return;
    // A bar of a round length: the map has one scale, and squared distance is KL.
    const room = 90 / view.unit, power = 10 ** Math.floor(Math.log10(room)), length = [5, 2, 1].find((each) => each * power <= room) * power;
    const left = 26, low = view.height - 26, right = left + length * view.unit;
    pen.box(left - 4, low - 18, right - left + 8, 24, page, 0.8);
    pen.line([[left, low - 4], [left, low], [right, low], [right, low - 4]], soft, 1.2);
    pen.text((left + right) / 2, low - 8, `${+length.toPrecision(1)} ${this.unit}`, soft, { align: "center", size: 10 });
  }

  // What is pointed at and what is chosen, above the points: cheap, so that the points stay as they are.
  mark() {
    if (!this.overPen || !this.places) return;
    this.overPen.clear();
    const at = (model) => [this.places[2 * model], this.places[2 * model + 1]];
    const known = (model) => model >= 0 && Number.isFinite(this.places[2 * model]);
    const chosen = this.picked.filter(known);
    if (chosen.length === 2) this.overPen.line(chosen.map(at), ink("ink"), 1.5, 0.9, [5, 4]);
    chosen.forEach((model) => {
      this.overPen.dot(...at(model), this.radius + 1.5, this.look.colour(model), ink("ink"));
      this.overPen.ring(...at(model), this.radius + 5, ink("ink"), 2);
      const [x, y] = at(model), letter = "AB"[this.picked.indexOf(model)];
      this.overPen.text(x + this.radius + 9, y - this.radius - 6, letter, ink("ink"), { size: 13, weight: 700 });
    });
    for (const near of this.near ?? []) if (known(near)) this.overPen.ring(...at(near), this.radius + 2.5, ink("soft"), 1.5);
    if (known(this.hovered)) {
      this.overPen.dot(...at(this.hovered), this.radius + 2, this.look.colour(this.hovered), ink("ink"));
      this.overPen.ring(...at(this.hovered), this.radius + 5, ink("ink"), 1.5);
    }
  }

  nearestTo(x, y) {
    let best = -1, least = NEAR ** 2;
    const [column, row] = [Math.floor(x / CELL), Math.floor(y / CELL)];
    for (let i = column - 1; i <= column + 1; i++) {
      for (let j = row - 1; j <= row + 1; j++) {
        for (const at of this.grid?.get(cellOf(i, j)) ?? []) {
          const far = (this.places[2 * at] - x) ** 2 + (this.places[2 * at + 1] - y) ** 2;
          if (far < least) [best, least] = [at, far];
        }
      }
    }
    return best;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    this.listen.hover(this.nearestTo(event.clientX - box.left, event.clientY - box.top), this);
  }

  press(x, y) {
    const found = this.nearestTo(x, y);
    if (found >= 0) this.listen.pick(found);
  }

  // To the next model in the direction of an arrow, as seen.
  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" && this.hovered >= 0) this.listen.pick(this.hovered);
    if (event.key === "Escape") this.listen.hover(-1);
    if (!way || !this.places) return;
    event.preventDefault();
    const from = this.hovered >= 0 ? [this.places[2 * this.hovered], this.places[2 * this.hovered + 1]] : [this.view.width / 2, this.view.height / 2];
    let best = -1, least = Infinity;
    for (const each of [...this.grid.values()].flat()) {
      const right = this.places[2 * each] - from[0], down = this.places[2 * each + 1] - from[1];
      const along = right * way[0] + down * way[1], aside = Math.abs(right * way[1]) + Math.abs(down * way[0]);
      if (each !== this.hovered && along > 0.5 && along + 2 * aside < least) [best, least] = [each, along + 2 * aside];
    }
    if (best >= 0) this.listen.hover(best, this);
  }

  // Where a model is on the screen, from the corner of the panel.
  at(model) {
    return [this.places[2 * model], this.places[2 * model + 1]];
  }
}
