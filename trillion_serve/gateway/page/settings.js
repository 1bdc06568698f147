// What the page remembers: choices in the browser, the API key only for as long as its tab lives.

const PREFIX = "trillion-serve.";

// A browser may forbid storage: the page then works the same, and remembers only until it is reloaded.
function openStorage(name) {
  try {
    return window[name];
  } catch {
    const values = new Map();
    return {
      getItem: (key) => values.get(key) ?? null,
      setItem: (key, value) => values.set(key, value),
      removeItem: (key) => values.delete(key),
    };
  }
}

class Setting {
  constructor(storageName, name) {
    this.storage = openStorage(storageName);
    this.name = PREFIX + name;
  }

  get value() {
    return this.storage.getItem(this.name);
  }

  set value(value) {
    if (value) this.storage.setItem(this.name, value);
    else this.storage.removeItem(this.name);
  }
}

export const theme = new Setting("localStorage", "theme");
export const language = new Setting("localStorage", "language");
export const model = new Setting("localStorage", "model");
export const thinking = new Setting("localStorage", "thinking");
export const budget = new Setting("localStorage", "budget");
export const apiKey = new Setting("sessionStorage", "key");
