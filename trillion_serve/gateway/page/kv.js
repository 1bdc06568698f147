// How full the engine's KV cache is, read from the server's Prometheus metrics while somebody looks.

import { metrics } from "./api.js";

const EVERY_MS = 3000;
const GAUGE = /^vllm:kv_cache_usage_perc(?:\{(.*)\})?\s+(\S+)/;
const MODEL = /(?:^|,)\s*model_name="((?:[^"\\]|\\.)*)"/;

// The share in use, 0 to 1: the mean over the engines of a model. null where the server does not say.
export function usageOf(text, model) {
  const shares = [];
  for (const line of text.split("\n")) {
    const [, labels = "", value] = line.match(GAUGE) ?? [];
    if (value === undefined || !Number.isFinite(Number(value))) continue;
    const name = labels.match(MODEL)?.[1].replace(/\\(["\\])/g, "$1");
    if (name === undefined || name === model) shares.push(Number(value));
  }
  return shares.length ? shares.reduce((sum, share) => sum + share) / shares.length : null;
}

// Shows the usage of the chosen model, and asks for it only while the page can be seen.
export class KvMeter {
  #timer = 0;
  #look = 0;
  #refused = false;

  constructor(show, model) {
    this.show = show;
    this.model = model;
    document.addEventListener("visibilitychange", () => this.look());
  }

  // Look at once and then regularly; with `again`, also at a server that refused before.
  async look({ again = false } = {}) {
    clearTimeout(this.#timer);
    const look = ++this.#look;
    if (again) this.#refused = false;
    if (document.hidden || this.#refused) return;
    const share = await this.#read();
    if (look !== this.#look) return;
    this.show(share);
    this.#timer = setTimeout(() => this.look(), EVERY_MS);
  }

  async #read() {
    try {
      return usageOf(await metrics(), this.model());
    } catch (error) {
      // 4xx will not get better by asking; anything else may.
      this.#refused = error.status >= 400 && error.status < 500;
      return null;
    }
  }
}
