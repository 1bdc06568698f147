// Asks for the API key of a server that wants one.

import * as settings from "./settings.js";

const byId = (id) => document.getElementById(id);

export class KeyDialog {
  #answer = null;
  #waiting = null;

  constructor(changed) {
    this.dialog = byId("key-dialog");
    this.changed = changed;
    this.dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep(byId("key-value").value.trim());
    });
    byId("key-forget").addEventListener("click", () => this.#keep(""));
    byId("key-cancel").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => this.#settle(false));
    byId("key").addEventListener("click", () => this.ask());
    this.#show();
  }

  // Whether a key was given. `reason` is what the server said; two requests that need a key share one question.
  ask(reason = "") {
    this.#waiting ??= new Promise((answer) => {
      this.#answer = answer;
      byId("key-reason").textContent = reason;
      byId("key-reason").hidden = !reason;
      byId("key-value").value = "";
      byId("key-forget").hidden = !settings.apiKey.value;
      this.dialog.showModal();
      byId("key-value").focus();
    });
    return this.#waiting;
  }

  // Do something that may need a key, as often as the user gives another one.
  async unlocked(work) {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (error.status !== 401 || !(await this.ask(error.message))) throw error;
      }
    }
  }

  #keep(key) {
    settings.apiKey.value = key;
    this.#show();
    this.#settle(Boolean(key));
    this.dialog.close();
    this.changed();
  }

  #settle(given) {
    this.#answer?.(given);
    this.#answer = this.#waiting = null;
  }

  #show() {
    byId("key").hidden = !settings.apiKey.value;
  }
}
