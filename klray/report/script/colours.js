// Colours: told apart without red and green, in light and in dark; a group or a number has one.

// Okabe and Ito (2008), lighter ones first in dark mode; what is beyond them is grey.
const GROUPS = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d1f"],
  dark: ["#5eb3f0", "#ff8c42", "#2fc493", "#e59cc4", "#f2b632", "#9ad4f5", "#b79ae0", "#c9ab5e"],
};
const REST = { light: "#9aa3ad", dark: "#6b7580" };
// viridis at eleven places, even in lightness; the ends that vanish on the page are cut off where points are drawn.
const VIRIDIS = ["#440154", "#482475", "#414487", "#355f8d", "#2a788e", "#21918c", "#22a884", "#44bf70", "#7ad151", "#bddf26", "#fde725"];
const ENDS = { light: [0, 0.9], dark: [0.2, 1] };

export function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export const mode = () => (isDark() ? "dark" : "light");

// A colour of the page, by the name of its variable.
export function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// viridis at a share of 0 to 1, as [red, green, blue].
export function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), below = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const [one, other] = [VIRIDIS[below], VIRIDIS[below + 1]].map((hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16)));
  return one.map((channel, place) => Math.round(channel + (other[place] - channel) * (at - below)));
}

const hex = (channels) => `#${channels.map((each) => each.toString(16).padStart(2, "0")).join("")}`;

export function shade(share) {
  const [low, high] = ENDS[mode()];
  return hex(viridis(low + share * (high - low)));
}

// How models are coloured: {names, of (K,) group of each, colour(group)}, or of numbers {shares (K,) in 0..1, colour}.
export function byGroups(labels, nameless, order) {
  const counts = new Map();
  for (const label of labels) counts.set(label || nameless, (counts.get(label || nameless) ?? 0) + 1);
  const names = [...counts.keys()].sort(order ?? ((a, b) => (a === nameless) - (b === nameless) || counts.get(b) - counts.get(a)));
  const at = new Map(names.map((name, place) => [name, place]));
  const of = Int32Array.from(labels, (label) => at.get(label || nameless));
  const colour = (group) =>
    order ? shade(names.length > 1 ? group / (names.length - 1) : 0.5)
      : names[group] === nameless ? REST[mode()] : GROUPS[mode()][group] ?? REST[mode()];
  return { names, counts: names.map((name) => counts.get(name)), of, colour };
}

// Numbers on a log scale, in steps of colour that a legend can name; NaN or less than `least` is grey.
export function byNumber(values, least) {
  const known = Array.from(values).filter((each) => each >= least);
  const low = Math.log(Math.min(...known.map((each) => each + 1))), high = Math.log(Math.max(...known.map((each) => each + 1)));
  const shares = Float64Array.from(values, (each) => (each >= least ? (high > low ? (Math.log(each + 1) - low) / (high - low) : 0.5) : NaN));
  return { shares, low: Math.exp(low) - 1, high: Math.exp(high) - 1, colour: (share) => (Number.isNaN(share) ? REST[mode()] : shade(Math.round(share * 63) / 63)) };
}
