// Elements. What the store says becomes text, never markup.

// An element with properties, listeners (onclick) and attributes (aria-*, data-*, for), and children: elements or text.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(label, press, properties = {}) {
  return el("button", { type: "button", onclick: press, ...properties }, label);
}

// One of several: a row of buttons of which one is pressed; returns the element and how to press one from outside.
export function choice(label, options, chosen, choose) {
  const buttons = new Map(options.map(([value, words]) => [value, button(words, () => choose(value))]));
  const show = (value) => buttons.forEach((each, of) => each.setAttribute("aria-pressed", String(of === value)));
  show(chosen);
  return { element: el("div", { className: "choice", role: "group", "aria-label": label }, [...buttons.values()]), show };
}

// A table with a header; the cells of columns from `numbers` on stand to the right.
export function table(header, rows, numbers = 1) {
  const side = (place) => (place >= numbers ? "number" : "");
  const head = header.map((words, place) => el("th", { scope: "col", className: side(place) }, words));
  const body = rows.map((cells) => el("tr", {}, cells.map((cell, place) => el("td", { className: side(place) }, cell))));
  return el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}
