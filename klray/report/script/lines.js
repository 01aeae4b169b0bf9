// Lines of runs along training: consecutive KL with bands, exponents with R².

import { Axis, MARGIN, frame } from "./axes.js";
import { Chart } from "./chart.js";
import { ink } from "./colours.js";
import { button, el } from "./dom.js";
import { integer, withError } from "./format.js";

// spec: {x, y: names of the axes, runs: [{name, colour(), points: [{x, y, se, usual, model, note}]}], line: {y, words}}
export class Lines extends Chart {
  constructor(place, name, label, card, spec) {
    super(place, name, label, card, (width) => Math.min(420, Math.max(280, width * 0.42)));
    Object.assign(this, { spec, hidden: new Set(), log: { x: spec.log[0], y: spec.log[1] } });
    for (const [axis, words] of [["x", "Log steps"], ["y", "Log values"]]) {
      const press = () => { this.log[axis] = !this.log[axis]; toggle.setAttribute("aria-pressed", String(this.log[axis])); this.redraw(); };
      const toggle = button(words, press, { "aria-pressed": String(this.log[axis]), className: "toggle" });
      this.controls.append(toggle);
    }
    this.names = el("div", { className: "entries flat" });
    place.append(this.names);
    this.entries();
  }

  entries() {
    const shown = this.spec.runs.slice(0, 40);
    this.names.replaceChildren(...shown.map((run) => button([el("i", { style: `background:${run.colour()}` }), el("span", {}, run.name)], () => {
      this.hidden[this.hidden.has(run.name) ? "delete" : "add"](run.name);
      this.entries();
      this.redraw();
    }, { className: "entry", "aria-pressed": String(!this.hidden.has(run.name)) })));
    if (this.spec.runs.length > 40) this.names.append(el("span", { className: "soft" }, `and ${integer(this.spec.runs.length - 40)} more`));
  }

  draw(pen) {
    const { spec, log } = this, [width, height] = this.size(), points = spec.runs.flatMap((run) => run.points);
    const fits = (value, axis) => Number.isFinite(value) && (!log[axis] || value > 0);
    const xs = points.map((each) => each.x).filter((each) => fits(each, "x"));
    const ys = points.map((each) => each.y).filter((each) => fits(each, "y"));
    pen.clear(pen === this.pen ? "" : ink("page"));
    if (!xs.length || !ys.length) { pen.text(width / 2, height / 2, "Nothing has a place on these axes.", ink("soft"), { align: "center" }); return; }
    const least = Math.min(...ys), most = Math.max(...ys, spec.line && fits(spec.line.y, "y") ? spec.line.y : -Infinity);
    const x = new Axis(Math.min(...xs), Math.max(...xs), MARGIN.left, width - MARGIN.right, log.x);
    const y = new Axis(log.y ? least * 0.9 : Math.min(0, least), log.y ? most * 1.1 : most * 1.05, height - MARGIN.bottom, MARGIN.top, log.y);
    frame(pen, x, y, [spec.x, spec.y]);
    const marks = [];
    pen.inside(x.start - 6, y.end - 6, x.end - x.start + 12, y.start - y.end + 6, () => {
      if (spec.line && fits(spec.line.y, "y")) pen.line([[x.start, y.at(spec.line.y)], [x.end, y.at(spec.line.y)]], ink("soft"), 1, 1, [5, 4]);
      for (const run of spec.runs) {
        const colour = run.colour(), alpha = this.hidden.has(run.name) ? 0.08 : 1;
        const drawn = run.points.filter((each) => fits(each.x, "x") && fits(each.y, "y"));
        const low = (each) => y.at(Math.max(each.y - (each.se || 0), log.y ? each.y / 10 : -Infinity));
        const stretches = [];
        for (const each of drawn) {
          if (!each.usual || !each.joined || !stretches.length) stretches.push([]);
          stretches.at(-1).push(each);
        }
        for (const stretch of stretches) {
          const place = (each) => [x.at(each.x), y.at(each.y)];
          if (stretch.length > 1) {
            if (spec.bands) pen.area([...stretch.map((each) => [x.at(each.x), y.at(each.y + each.se)]), ...stretch.map((each) => [x.at(each.x), low(each)]).reverse()], colour, 0.16 * alpha);
            pen.line(stretch.map(place), colour, 1.6, alpha);
          }
          for (const each of stretch) {
            const [left, top] = place(each);
            pen.dot(left, top, 3, each.usual ? colour : ink("page"), each.usual ? ink("page") : colour, alpha);
            if (alpha === 1) marks.push({ x: left, y: top, show: () => this.about(run, each), press: each.press });
          }
        }
      }
    });
    if (pen === this.pen) this.marks = marks.sort((a, b) => a.x - b.x);
  }

  about(run, point) {
    return [el("strong", {}, run.name), el("dl", {}, el("dt", {}, this.spec.short), el("dd", {}, withError(point.y, point.se)),
      point.note.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))];
  }

  find(x, y) {
    return this.nearestMark(x, y);
  }

  rows() {
    return [["run", "step", ...this.spec.columns], this.spec.runs.flatMap((run) => run.points.map((each) => [run.name, each.x, ...each.row]))];
  }
}
