// One drawing, two pens: a canvas for the screen and for PNG, SVG for a file.

import { el } from "./dom.js";

const round = (value) => Math.round(value * 100) / 100;

function cells(columns, colours) {
  const small = el("canvas", { width: columns, height: colours.length / 4 / columns });
  small.getContext("2d").putImageData(new ImageData(colours, columns), 0, 0);
  return small;
}

// One pixel over another, four bytes each: red, green, blue and how opaque it is.
function over(pixel, below) {
  const share = (pixel >>> 24) / 255, rest = ((below >>> 24) / 255) * (1 - share), all = share + rest;
  let mixed = Math.round(all * 255) << 24;
  for (const shift of [0, 8, 16]) mixed |= Math.round((((pixel >>> shift) & 255) * share + ((below >>> shift) & 255) * rest) / all) << shift;
  return mixed >>> 0;
}

export class CanvasPen {
  constructor(canvas, width, height, scale = devicePixelRatio || 1) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    this.context = canvas.getContext("2d");
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.scale = scale;
    this.width = width;
    this.height = height;
  }

  clear(colour) {
    this.context.clearRect(0, 0, this.width, this.height);
    if (colour) this.box(0, 0, this.width, this.height, colour);
  }

  // A disc with a rim.
  dot(x, y, radius, colour, rim, alpha = 1) {
    const { context } = this;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    Object.assign(context, { fillStyle: colour, globalAlpha: alpha }).fill();
    if (rim) Object.assign(context, { strokeStyle: rim, lineWidth: 1 }).stroke();
    context.globalAlpha = 1;
  }

  // Many discs of one size: draw(stamp) calls stamp(x, y, colour) for each. Their pixels are laid by hand into one picture,
  // in a tenth of the time that a canvas takes for so many.
  stamps(radius, rim, alpha, draw) {
    const { scale } = this, { width, height } = this.context.canvas, size = Math.ceil((2 * radius + 3) * scale);
    const image = (this.image ??= new ImageData(width, height)), page = new Uint32Array(image.data.buffer), marks = new Map();
    page.fill(0);
    const make = (colour) => {
      const canvas = el("canvas", { width: size, height: size }), pen = new CanvasPen(canvas, size / scale, size / scale, scale);
      pen.dot(size / 2 / scale, size / 2 / scale, radius, colour, rim, alpha);
      const mark = new Uint32Array(pen.context.getImageData(0, 0, size, size).data.buffer);
      marks.set(colour, mark);
      return mark;
    };
    draw((x, y, colour) => {
      const mark = marks.get(colour) ?? make(colour), left = Math.round(x * scale - size / 2), top = Math.round(y * scale - size / 2);
      const first = Math.max(0, -left), last = Math.min(size, width - left);
      for (let row = Math.max(0, -top); row < Math.min(size, height - top); row++) {
        let from = row * size + first, to = (top + row) * width + left + first;
        for (let column = first; column < last; column++, from++, to++) {
          const pixel = mark[from];
          if (pixel >>> 24) page[to] = pixel >>> 24 === 255 || !page[to] ? pixel : over(pixel, page[to]);
        }
      }
    });
    const layer = (this.layer ??= el("canvas", { width, height }));
    layer.getContext("2d").putImageData(image, 0, 0);
    this.context.drawImage(layer, 0, 0, this.width, this.height);
  }

  ring(x, y, radius, colour, width) {
    this.context.beginPath();
    this.context.arc(x, y, radius, 0, 2 * Math.PI);
    Object.assign(this.context, { strokeStyle: colour, lineWidth: width }).stroke();
  }

  line(points, colour, width = 1, alpha = 1, dash = []) {
    const { context } = this;
    context.beginPath();
    points.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.setLineDash(dash);
    Object.assign(context, { strokeStyle: colour, lineWidth: width, lineJoin: "round", globalAlpha: alpha }).stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  area(points, colour, alpha) {
    const { context } = this;
    context.beginPath();
    points.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
    Object.assign(context, { fillStyle: colour, globalAlpha: alpha }).fill();
    context.globalAlpha = 1;
  }

  box(x, y, width, height, colour, alpha = 1) {
    Object.assign(this.context, { fillStyle: colour, globalAlpha: alpha }).fillRect(x, y, width, height);
    this.context.globalAlpha = 1;
  }

  text(x, y, words, colour, { size = 11, align = "left", turn = 0, weight = 400 } = {}) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    context.rotate((turn * Math.PI) / 180);
    Object.assign(context, { font: `${weight} ${size}px system-ui, sans-serif`, fillStyle: colour, textAlign: align, textBaseline: "middle" });
    context.fillText(words, 0, 0);
    context.restore();
  }

  // What is drawn within `draw` stays inside the frame.
  inside(x, y, width, height, draw) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(x, y, width, height);
    this.context.clip();
    draw();
    this.context.restore();
  }

  // A picture of cells: colours (rows * columns * 4 bytes), as large as the frame.
  cells(x, y, width, height, columns, colours) {
    const small = cells(columns, colours);
    this.context.imageSmoothingEnabled = small.width > width * this.scale;
    this.context.drawImage(small, x, y, width, height);
  }
}

export class SvgPen {
  constructor(width, height) {
    Object.assign(this, { width, height, parts: [] });
  }

  add(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, typeof value === "number" ? round(value) : value);
    if (text !== undefined) node.textContent = text;
    this.parts.push(new XMLSerializer().serializeToString(node).replace(' xmlns="http://www.w3.org/2000/svg"', ""));
  }

  clear(colour) {
    if (colour) this.box(0, 0, this.width, this.height, colour);
  }

  dot(x, y, radius, colour, rim, alpha = 1) {
    this.add("circle", { cx: x, cy: y, r: radius, fill: colour, opacity: alpha, ...(rim ? { stroke: rim } : {}) });
  }

  stamps(radius, rim, alpha, draw) {
    draw((x, y, colour) => this.dot(x, y, radius, colour, rim, alpha));
  }

  ring(x, y, radius, colour, width) {
    this.add("circle", { cx: x, cy: y, r: radius, fill: "none", stroke: colour, "stroke-width": width });
  }

  line(points, colour, width = 1, alpha = 1, dash = []) {
    const path = { points: points.map(([x, y]) => `${round(x)},${round(y)}`).join(" "), fill: "none", stroke: colour };
    this.add("polyline", { ...path, "stroke-width": width, opacity: alpha, "stroke-dasharray": dash.join(" ") || "none" });
  }

  area(points, colour, alpha) {
    this.add("polygon", { points: points.map(([x, y]) => `${round(x)},${round(y)}`).join(" "), fill: colour, opacity: alpha });
  }

  box(x, y, width, height, colour, alpha = 1) {
    this.add("rect", { x, y, width, height, fill: colour, opacity: alpha });
  }

  text(x, y, words, colour, { size = 11, align = "left", turn = 0, weight = 400 } = {}) {
    const anchor = { left: "start", right: "end", center: "middle" }[align];
    const place = { transform: `translate(${round(x)} ${round(y)}) rotate(${turn})`, "dominant-baseline": "central", "text-anchor": anchor };
    this.add("text", { ...place, fill: colour, "font-size": size, "font-weight": weight, "font-family": "system-ui, sans-serif" }, words);
  }

  inside(x, y, width, height, draw) {
    const box = [x, y, width, height].map(round);
    this.parts.push(`<svg x="${box[0]}" y="${box[1]}" width="${box[2]}" height="${box[3]}" viewBox="${box.join(" ")}">`);
    draw();
    this.parts.push("</svg>");
  }

  cells(x, y, width, height, columns, colours) {
    const small = cells(columns, colours);
    this.add("image", { x, y, width, height, href: small.toDataURL(), style: "image-rendering:pixelated", preserveAspectRatio: "none" });
  }

  toString() {
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${this.width} ${this.height}" width="${this.width}" height="${this.height}">${this.parts.join("")}</svg>`;
  }
}
