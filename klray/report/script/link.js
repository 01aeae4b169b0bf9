// What the reader chose, in one place; the part of the address behind # keeps it, so that a link shows the same.

export class Choices {
  // defaults: {name: text}; a name that has its default is not in the address.
  constructor(defaults) {
    this.defaults = defaults;
    this.values = { ...defaults };
    this.listeners = [];
    this.read();
    addEventListener("hashchange", () => {
      if (location.hash.includes("=") || location.hash === "") { this.read(); this.tell(); }
    });
  }

  read() {
    this.values = { ...this.defaults };
    if (!location.hash.includes("=")) return;
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (Object.hasOwn(this.defaults, name)) this.values[name] = value;
    }
  }

  get(name) {
    return this.values[name];
  }

  // Several lines as one value: names may hold any sign but that of a new line.
  list(name) {
    return this.values[name] ? this.values[name].split("\n") : [];
  }

  set(changes) {
    for (const [name, value] of Object.entries(changes)) this.values[name] = Array.isArray(value) ? value.join("\n") : String(value);
    clearTimeout(this.waiting); // browsers refuse an address that changes with every step of a slider
    this.waiting = setTimeout(() => history.replaceState(null, "", this.address()), 150);
    this.tell(changes);
  }

  address() {
    const kept = Object.entries(this.values).filter(([name, value]) => value !== this.defaults[name]);
    return kept.length ? `#${new URLSearchParams(kept)}` : location.href.split("#")[0];
  }

  on(listener) {
    this.listeners.push(listener);
  }

  tell(changes = this.values) {
    for (const each of this.listeners) each(changes);
  }
}
