// Numbers as a person says them: the same digits as klray's own words.

export const NONE = "–";

// With that many significant digits; a dash for no number.
export function significant(value, digits = 3) {
  if (!Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 10 ** digits) return integer(Math.round(value));
  if (size > 0 && size < 1e-4) return scientific(value, digits - 1);
  return value === 0 ? (0).toFixed(digits - 1) : value.toPrecision(digits);
}

// value ± error, both to two significant digits of the error.
export function withError(value, error) {
  if (!(Number.isFinite(value) && Number.isFinite(error) && error > 0)) return significant(value);
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(error)));
  if (decimals > 6) return `${scientific(value, 2)} ± ${scientific(error, 1)}`;
  return `${value.toFixed(decimals)} ± ${error.toFixed(decimals)}`;
}

export function integer(value) {
  return Number.isFinite(value) ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : NONE;
}

// A number with its noun: 1 model, 2 models.
export function counted(value, noun) {
  return `${integer(value)} ${noun}${value === 1 ? "" : "s"}`;
}

// A parameter count: 410M, 1.4B.
export function short(value) {
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= unit) return `${+(value / unit).toPrecision(3)}${letter}`;
  }
  return integer(value);
}

function scientific(value, decimals) {
  return value.toExponential(decimals).replace(/e([+-])(\d)$/, "e$10$2");
}
