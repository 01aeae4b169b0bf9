// KL from rows of log-likelihoods, as klray computes it: (K, N) nats, differences in float64.

// KL and standard error of two rows (N,) in bits/byte over the texts that are chosen (positions), by the delta method.
//   KL = Var(d) / (2 B ln 2), SE = sqrt((m4 - m2^2) / N) / (2 B ln 2), d = one - other, B = mean bytes of a text
export function divergence(one, other, bytes, chosen) {
  const n = chosen.length;
  let mean = 0, size = 0;
  for (const at of chosen) { mean += one[at] - other[at]; size += bytes[at]; }
  mean /= n;
  let second = 0, fourth = 0;
  for (const at of chosen) {
    const square = (one[at] - other[at] - mean) ** 2;
    second += square;
    fourth += square * square;
  }
  second /= n;
  const unit = 1 / (2 * (size / n) * Math.LN2);
  return { kl: second * unit, se: Math.sqrt(Math.max(fourth / n - second ** 2, 0) / n) * unit };
}

// The texts whose difference is farthest from the mean difference: {text, nats, share of the variance}, largest first.
export function differing(one, other, most) {
  const difference = Float64Array.from(one, (value, at) => value - other[at]);
  const mean = difference.reduce((sum, each) => sum + each, 0) / difference.length;
  const all = difference.reduce((sum, each) => sum + (each - mean) ** 2, 0);
  return Array.from(difference, (each, text) => ({ text, nats: each - mean, share: (each - mean) ** 2 / all }))
    .sort((a, b) => b.share - a.share)
    .slice(0, most);
}
