// What the page uses of zarrita, and zstd in JavaScript: that of zarrita's own codecs is WebAssembly, which the page's
// policy would have to allow.
export { decompress } from "fzstd";
export { FetchStore, get, open, registry, root } from "zarrita";
