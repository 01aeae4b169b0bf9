// A reader of klray stores (docs/store.md): the newest snapshot, its coordinates and rows, and results made of it.
// Objects are asked for by their names alone, rows by their bytes, and believed if they have the SHA-256 that is known.

import { decompress, FetchStore, get, open, registry, root } from "./zarrita.js";

registry.set("zstd", () => ({ fromConfig: () => ({ kind: "bytes_to_bytes", decode: (bytes) => decompress(bytes).slice() }) }));

const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, "0")).join("");
export const verifies = Boolean(globalThis.crypto?.subtle); // browsers have SHA-256 on https and localhost alone

async function believed(bytes, sha256, name) {
  if (!bytes) throw new Error(`${name} is missing: it was written and is gone`);
  if (verifies && sha256 && hex(await crypto.subtle.digest("SHA-256", bytes)) !== sha256) throw new Error(`${name} holds other bytes than were written`);
  return bytes;
}

// A Zarr group with consolidated metadata, as zarrita asks for it: a chunk that is missing is an error, no fill values.
export class Group {
  constructor(files, path, hashes) { Object.assign(this, { files, path, hashes }); }

  async opened() {
    const { attributes, consolidated_metadata: { metadata } } = json(await this.read("zarr.json"));
    return Object.assign(this, { attributes, metadata });
  }

  async read(name) { return believed(await this.files.get(`/${this.path}/${name}`), this.hashes[name], name); }

  async get(key) {
    const [, name] = key.match(/^\/([\w.-]+)\/zarr\.json$/) ?? [];
    return name ? new TextEncoder().encode(JSON.stringify(this.metadata[name])) : this.read(key.slice(1));
  }

  // All values of an array: numbers, strings, or rows of them.
  async array(name) {
    const { data, shape } = await get(await open.v3(root(this).resolve(name), { kind: "array" }));
    const values = data instanceof BigInt64Array ? Float64Array.from(data, Number) : data;
    return shape.length < 2 ? values : Array.from({ length: shape[0] }, (_, row) => values.subarray(row * shape[1], (row + 1) * shape[1]));
  }

  // Rows of the uncompressed (model, text) log-likelihoods, float32 nats: a column's, `first` its first row.
  async rows(first, count, sha256) {
    const { shape: [, texts], chunk_grid: { configuration: { chunk_shape: [models, width] } }, codecs, data_type } = this.metadata.log_likelihood;
    if (codecs.length !== 1 || codecs[0].configuration?.endian !== "little" || data_type !== "float32" || width !== texts) throw new Error("log_likelihood is stored in another way than schema 1 has it");
    const found = new Uint8Array(4 * texts * count);
    await Promise.all(Array.from({ length: count }, async (_, row) => {
      const name = `log_likelihood/c/${Math.floor((first + row) / models)}/0`, offset = 4 * texts * ((first + row) % models);
      const part = await believed(await this.files.getRange(`/${this.path}/${name}`, { offset, length: 4 * texts }), "", name);
      found.set(part.length === 4 * texts ? part : part.subarray(offset, offset + 4 * texts), 4 * texts * row); // a server may send all
    }));
    await believed(found, sha256, `column of row ${first}`);
    return Array.from({ length: count }, (_, row) => new Float32Array(found.buffer, 4 * texts * row, texts));
  }
}

export async function openStore(url) {
  const files = new FetchStore(url, { overrides: { credentials: "omit" }, fetch: async (request) => {
    const answer = await fetch(request);
    return answer.status === 403 ? new Response(null, { status: 404 }) : answer; // S3's word for missing, to who may not list
  } });
  const now = { cache: "no-cache" };
  const { id } = json(await believed(await files.get("/snapshots/LATEST.json", now), "", "snapshots/LATEST.json"));
  if (!/^[0-9]{8}T[0-9.]+Z-[0-9a-f]{8}$/.test(id)) throw new Error("LATEST.json names no snapshot");
  const manifest = json(await believed(await files.get(`/snapshots/${id}.json`), "", id));
  const snapshot = await new Group(files, `snapshots/${id}`, manifest.objects).opened();
  return { id, manifest, snapshot, files,
    // A finished analysis of the snapshot; null if there is none of this name.
    result: async (name) => {
      const marker = await files.get(`/results/${id}/${name}.json`, now);
      if (!marker) return null;
      const { path, objects } = json(marker), below = `results/${id}/${name}/`;
      if (!path.startsWith(below) || !/^[0-9a-f]{8}$/.test(path.slice(below.length))) throw new Error(`result ${name} names another place`);
      const sha256 = Object.entries(objects).filter(([, each]) => /^[0-9a-f]{64}$/.test(each)); // others are ETags of a server
      return new Group(files, path, Object.fromEntries(sha256.map(([key, each]) => [key.slice(path.length + 1), each]))).opened();
    },
  };
}
