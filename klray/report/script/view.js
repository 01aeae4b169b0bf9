// A window on a plane: which part of it is seen, moved and zoomed by pointer, wheel, fingers and keys.

export class View {
  // points: pairs of numbers [x0, y0, x1, y1, ...]; both axes have one scale.
  constructor(points) {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let at = 0; at < points.length; at += 2) {
      if (!Number.isFinite(points[at])) continue;
      left = Math.min(left, points[at]); right = Math.max(right, points[at]);
      low = Math.min(low, points[at + 1]); high = Math.max(high, points[at + 1]);
    }
    this.middle = [(left + right) / 2, (low + high) / 2];
    this.span = [right - left || 1, high - low || 1];
    this.reset();
  }

  reset() {
    Object.assign(this, { zoom: 1, x: this.middle[0], y: this.middle[1] });
  }

  fit(width, height) {
    Object.assign(this, { width, height, base: Math.min((width - 48) / this.span[0], (height - 48) / this.span[1]) });
  }

  get unit() {
    return this.base * this.zoom;
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.x) * this.unit, this.height / 2 - (y - this.y) * this.unit];
  }

  toPlane(x, y) {
    return [this.x + (x - this.width / 2) / this.unit, this.y - (y - this.height / 2) / this.unit];
  }

  // The point under (x, y) on the screen stays there.
  zoomAt(x, y, factor) {
    const [before, above] = this.toPlane(x, y);
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 2000);
    const [after, below] = this.toPlane(x, y);
    this.x += before - after;
    this.y += above - below;
  }

  move(right, down) {
    this.x -= right / this.unit;
    this.y += down / this.unit;
  }
}

// Lets a reader move the view of `canvas`. The wheel zooms where the map has the focus or Ctrl is held: a page scrolls.
export function movable(canvas, view, changed, clicked) {
  const held = new Map();
  let moved = 0;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    held.set(event.pointerId, at(event));
    moved = 0;
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    const now = at(event), [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    moved += far(now, before);
    if (moved < 4) return;
    if (other) view.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, far(now, other) / Math.max(far(before, other), 1));
    else view.move(now[0] - before[0], now[1] - before[1]);
    held.set(event.pointerId, now);
    changed();
  });
  const end = (event) => {
    if (held.delete(event.pointerId) && event.type === "pointerup" && moved < 4) clicked(...at(event));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    view.zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
    changed();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { view.reset(); changed(); });
  canvas.addEventListener("keydown", (event) => {
    const step = { "+": 1.4, "=": 1.4, "-": 1 / 1.4 }[event.key];
    if (step) view.zoomAt(view.width / 2, view.height / 2, step);
    else if (event.key === "0") view.reset();
    else return;
    event.preventDefault();
    changed();
  });
}
