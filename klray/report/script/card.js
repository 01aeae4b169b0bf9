// What is known of the model or mark that is pointed at.

import { nameOf, nearest } from "./data.js";
import { el } from "./dom.js";
import { integer, significant, short, withError } from "./format.js";

// A card that floats beside the pointer; on a narrow page it lies at the bottom.
export class Card {
  constructor() {
    this.element = el("div", { className: "card", hidden: true, role: "status" });
    document.body.append(this.element);
  }

  hide() {
    this.element.hidden = true;
  }

  // Beside (x, y) of the window.
  show(children, x, y) {
    this.element.replaceChildren(...children);
    this.element.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const left = x + 18 + width > innerWidth ? x - 18 - width : x + 18;
    const top = Math.min(Math.max(y - height / 2, 8), innerHeight - height - 8);
    this.element.style.translate = `${Math.max(left, 8)}px ${Math.max(top, 8)}px`;
  }
}

// Repository, step, bits per byte, and the five nearest in the full space.
export function aboutModel(data, model) {
  const { models } = data;
  const facts = [
    models.step[model] >= 0 ? ["step", integer(models.step[model])] : ["revision", models.revision[model]],
    models.bits_per_byte ? ["bits per byte", significant(models.bits_per_byte[model], 4)] : null,
    models.parameters[model] > 0 ? ["parameters", short(models.parameters[model])] : null,
    models.family[model] ? ["family", models.family[model]] : null,
    models.variant[model] ? ["variant", models.variant[model]] : null,
    models.base_model[model] ? ["base model", models.base_model[model]] : null,
    models.excluded[model] ? ["excluded", "yes"] : null,
  ].filter(Boolean);
  const near = nearest(data, model, 5);
  return [
    el("strong", {}, models.repository[model]),
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    near.length ? el("p", { className: "soft" }, "Nearest in the full space, KL ± SE in bits/byte") : null,
    near.length
      ? el("ol", {}, near.map((each) => el("li", {}, el("span", {}, nameOf(data, each.model)), el("b", {}, withError(each.kl, each.se)))))
      : null,
  ].filter(Boolean);
}
