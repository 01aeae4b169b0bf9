// Rows of log-likelihoods as a recipe has them (docs/analysis.md): clipped in float32, without outlier texts.

// Every value below the threshold raised to it.
export function clipped(row, recipe) {
  const least = Math.fround(recipe.clip_threshold);
  return row.map((value) => (value < least ? least : value));
}

// Positions of the texts that a recipe keeps, or of all.
export function kept(texts, recipe) {
  const removed = new Set(recipe?.removed_texts);
  return Array.from({ length: texts }, (_, at) => at).filter((at) => !removed.has(at));
}

// Bits per byte over the chosen texts.
export function bitsPerByte(row, bytes, chosen) {
  const sum = (values) => chosen.reduce((total, at) => total + values[at], 0);
  return -sum(row) / (sum(bytes) * Math.LN2);
}
