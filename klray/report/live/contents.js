// The texts themselves, where the store's owner has published them (texts.publish=true).

import { Group } from "./reader.js";
import { open, root } from "./zarrita.js";

// A function that gives a text by its number, if it has so many bytes; null where the store has no texts.
export async function openContents(files) {
  const metadata = await files.get("/texts/content/zarr.json", { cache: "no-cache" });
  if (!metadata) return null;
  const group = Object.assign(new Group(files, "texts", {}), { metadata: { content: JSON.parse(new TextDecoder().decode(metadata)) } });
  const array = await open.v3(root(group).resolve("content"), { kind: "array" }), [size] = array.chunks;
  return async (number, bytes) => {
    const found = (await array.getChunk([Math.floor(number / size)])).data[number % size];
    if (new TextEncoder().encode(found).length !== bytes) throw new Error(`text ${number} has not the bytes that it had`);
    return found;
  };
}
