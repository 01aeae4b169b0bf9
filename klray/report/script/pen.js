// One drawing, two pens: a canvas for the screen and for PNG, SVG for a file.

const round = (value) => Math.round(value * 100) / 100;

export class CanvasPen {
  constructor(canvas, width, height, scale = devicePixelRatio || 1) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    this.context = canvas.getContext("2d");
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.scale = scale;
    this.width = width;
    this.height = height;
    this.sprites = new Map();
  }

  clear(colour) {
    this.context.clearRect(0, 0, this.width, this.height);
    if (colour) this.box(0, 0, this.width, this.height, colour);
  }

  // A disc with a rim, drawn once and then copied: 10,000 of them in a few milliseconds.
  dot(x, y, radius, colour, rim, alpha = 1) {
    const name = `${radius} ${colour} ${rim}`, size = 2 * radius + 3;
    let sprite = this.sprites.get(name);
    if (!sprite) {
      sprite = document.createElement("canvas");
      sprite.width = sprite.height = Math.ceil(size * this.scale);
      const context = sprite.getContext("2d");
      context.scale(this.scale, this.scale);
      context.beginPath();
      context.arc(size / 2, size / 2, radius, 0, 2 * Math.PI);
      context.fillStyle = colour;
      context.fill();
      if (rim) Object.assign(context, { strokeStyle: rim, lineWidth: 1 }).stroke();
      this.sprites.set(name, sprite);
    }
    this.context.globalAlpha = alpha;
    this.context.drawImage(sprite, x - size / 2, y - size / 2, size, size);
    this.context.globalAlpha = 1;
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
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = colours.length / 4 / columns;
    small.getContext("2d").putImageData(new ImageData(colours, columns), 0, 0);
    this.context.imageSmoothingEnabled = small.width > width * this.scale;
    this.context.drawImage(small, x, y, width, height);
    this.small = small;
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
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = colours.length / 4 / columns;
    small.getContext("2d").putImageData(new ImageData(colours, columns), 0, 0);
    this.add("image", { x, y, width, height, href: small.toDataURL(), style: "image-rendering:pixelated", preserveAspectRatio: "none" });
  }

  toString() {
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${this.width} ${this.height}" width="${this.width}" height="${this.height}">${this.parts.join("")}</svg>`;
  }
}
