// Where a KL falls on the scale: the same words as klray.place.

import { significant } from "./format.js";

// Settings, the nearest in log KL first; each {phrase, low, high, n, kl (sorted, some or all of the pairs)}.
export function neighboursOf(kl, scale) {
  const ratio = ({ low, high }) => (kl === 0 ? -Infinity : Math.log(kl) - Math.log(Math.min(Math.max(kl, low), high)));
  return scale.settings
    .map((each) => ({ ...each, ratio: ratio(each) }))
    .sort((a, b) => Math.abs(a.ratio) - Math.abs(b.ratio) || a.low - b.low);
}

export function likeness(kl, scale) {
  const found = neighboursOf(kl, scale), [nearest] = found;
  if (!nearest) return "";
  const words = (each) => `${each.phrase} (${range(each)}${share(kl, each, scale)})`;
  if (kl === 0) return `no difference at all; the smallest setting is ${words(nearest)}`;
  const least = Math.abs(nearest.ratio);
  if (least > scale.far) {
    const far = nearest.ratio > 0 ? "times more than" : "times less than";
    return `${significant(Math.exp(least), 2)} ${far} ${words(nearest)}, the nearest setting`;
  }
  const near = found.slice(0, 3).filter((each) => Math.abs(each.ratio) <= least + scale.near);
  return `like ${near.map(words).join(", or ")}`;
}

// Three digits without closing zeros, as Python's %g writes them.
function range({ low, high }) {
  const plain = (value) => String(+value.toPrecision(low === high ? 3 : 6));
  return low === high ? plain(low) : `${plain(low)} to ${plain(high)}`;
}

// Ties count by half. Of more pairs than are carried their quantiles stand for them.
function share(kl, { n, kl: sorted }, scale) {
  if (!sorted || n < scale.few) return "";
  let below = 0, equal = 0;
  for (const each of sorted) { below += each < kl; equal += each === kl; }
  return `, above ${Math.round((100 * (below + equal / 2)) / sorted.length)}% of ${n.toLocaleString("en-US")} pairs`;
}
