// The map of a result: each model a point; what is pointed at is named, what is pressed is chosen.

const RADIUS = 4, NEAR = 12, MARGIN = 16;

export class Map {
  // `places` are (x, y) by model, NaN where it is on no map; `listen` has hover(model) and pick(model).
  constructor(canvas, places, colours, listen) {
    Object.assign(this, { canvas, places, colours, listen, chosen: [-1, -1], hovered: -1 });
    canvas.addEventListener("pointermove", (event) => this.point(event, "hover"));
    canvas.addEventListener("click", (event) => this.point(event, "pick"));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // One scale for both axes: distances count.
  fitted() {
    const there = this.places.filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
    const ends = [0, 1].map((axis) => there.reduce(([low, high], place) => [Math.min(low, place[axis]), Math.max(high, place[axis])], [Infinity, -Infinity]));
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = Math.min((width - 2 * MARGIN) / (ends[0][1] - ends[0][0] || 1), (height - 2 * MARGIN) / (ends[1][1] - ends[1][0] || 1));
    const middle = ends.map(([low, high]) => (low + high) / 2);
    return this.places.map(([x, y]) => [width / 2 + (x - middle[0]) * scale, height / 2 - (y - middle[1]) * scale]);
  }

  draw() {
    const ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    this.screen = this.fitted();
    const pen = this.canvas.getContext("2d"), ink = getComputedStyle(this.canvas).color;
    pen.scale(ratio, ratio);
    const dot = (model, radius, fill, line) => {
      const [x, y] = this.screen[model];
      if (!Number.isFinite(x) || !Number.isFinite(y)) return;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      Object.assign(pen, { fillStyle: fill, strokeStyle: line, lineWidth: 2 });
      pen.fill();
      if (line) pen.stroke();
    };
    this.screen.forEach((_, model) => dot(model, RADIUS, this.colours[model]));
    this.chosen.forEach((model, which) => {
      if (model < 0) return;
      dot(model, RADIUS + 2, this.colours[model], ink);
      pen.fillStyle = ink;
      pen.font = "bold 13px sans-serif";
      pen.fillText("AB"[which], this.screen[model][0] + 8, this.screen[model][1] - 8);
    });
    if (this.hovered >= 0) dot(this.hovered, RADIUS + 1, this.colours[this.hovered], ink);
  }

  point(event, what) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let found = -1, least = NEAR ** 2;
    this.screen?.forEach(([left, top], model) => {
      const far = (left - x) ** 2 + (top - y) ** 2;
      if (far < least) [found, least] = [model, far];
    });
    if (what === "hover" && found !== this.hovered) {
      this.hovered = found;
      this.draw();
      this.listen.hover(found);
    }
    if (what === "pick" && found >= 0) this.listen.pick(found);
  }
}
