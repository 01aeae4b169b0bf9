// A figure on a canvas that draws itself to its width, tells what is under the pointer, and can be saved.

import { el } from "./dom.js";
import { CanvasPen } from "./pen.js";
import { savers } from "./save.js";

export class Chart {
  // A subclass has draw(pen), rows() and find(x, y): {show: children, x, y, press} or null.
  constructor(place, name, label, card, height) {
    Object.assign(this, { place, name, card, height });
    this.canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": label });
    this.controls = el("div", { className: "controls" });
    this.frame = el("div", { className: "chart-frame" }, this.canvas);
    place.replaceChildren(el("div", { className: "tools" }, this.controls, savers(name, this)), this.frame);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => this.card.hide());
    this.canvas.addEventListener("click", (event) => this.under(event)?.press?.());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => { this.walked = undefined; this.card.hide(); });
    new ResizeObserver(() => this.resize()).observe(this.frame);
    new IntersectionObserver(([{ isIntersecting }]) => { this.near = isIntersecting; if (this.stale) this.redraw(); }, { rootMargin: "400px" }).observe(this.frame);
  }

  size() {
    return [this.width, typeof this.height === "function" ? this.height(this.width) : this.height];
  }

  resize() {
    this.width = this.frame.clientWidth;
    const [width, height] = this.size();
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    this.redraw();
  }

  // What is far from being seen waits.
  redraw() {
    this.stale = !this.near || !this.width;
    if (this.stale) return;
    const [width, height] = this.size();
    this.pen = new CanvasPen(this.canvas, width, height);
    this.draw(this.pen);
  }

  under(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.find(event.clientX - box.left, event.clientY - box.top);
  }

  point(event) {
    const found = this.under(event);
    this.canvas.style.cursor = found?.press ? "pointer" : "";
    if (found) this.card.show(found.show, event.clientX, event.clientY);
    else this.card.hide();
  }

  // Left and right walk along the marks, where the chart has a list of them.
  key(event) {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") this.card.hide();
    if (!this.marks?.length || !way) return;
    event.preventDefault();
    this.walked = ((this.walked ?? (way > 0 ? -1 : 0)) + way + this.marks.length) % this.marks.length;
    const mark = this.marks[this.walked], box = this.canvas.getBoundingClientRect();
    this.card.show(mark.show(), box.left + mark.x, box.top + mark.y);
  }

  // The nearest of the marks {x, y, show()} within a few pixels.
  nearestMark(x, y) {
    let best = null, least = 16 ** 2;
    for (const mark of this.marks ?? []) {
      const far = (mark.x - x) ** 2 + (mark.y - y) ** 2;
      if (far < least) [best, least] = [mark, far];
    }
    return best && { show: best.show(), press: best.press };
  }
}
