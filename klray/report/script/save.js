// What is on the screen as a file: SVG, PNG, CSV. Nothing leaves the page but by the reader's own download.

import { button, el } from "./dom.js";
import { CanvasPen, SvgPen } from "./pen.js";

export function download(name, type, body) {
  const link = el("a", { href: URL.createObjectURL(new Blob([body], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// RFC 4180; a cell that a spreadsheet would take for a formula is text.
export function csv(header, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined || Number.isNaN(value) ? "" : String(typeof value === "number" ? +value.toPrecision(9) : value);
    const safe = typeof value !== "number" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

// Buttons that keep a figure: `chart` has size(), draw(pen) and rows() ([header, rows]).
export function savers(name, chart) {
  const svg = () => {
    const pen = new SvgPen(...chart.size());
    chart.draw(pen);
    download(`${name}.svg`, "image/svg+xml", String(pen));
  };
  const png = () => {
    const canvas = document.createElement("canvas");
    chart.draw(new CanvasPen(canvas, ...chart.size(), 3));
    canvas.toBlob((blob) => download(`${name}.png`, "image/png", blob));
  };
  const data = () => download(`${name}.csv`, "text/csv", csv(...chart.rows()));
  return el("div", { className: "savers" }, "Save ", button("SVG", svg), button("PNG", png), button("CSV", data));
}
