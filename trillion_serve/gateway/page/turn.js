// An exchange as it is seen in the conversation.

import { render } from "./prose.js";
import { apply, duration, knows, number, word } from "./words.js";

export class Turn {
  #frame = 0;
  #collapsed = false;

  // `again` is called when the user wants the question asked once more, `reading` when they open or close reasoning.
  constructor(exchange, { again, reading }) {
    this.exchange = exchange;
    this.element = document.getElementById("turn").content.cloneNode(true).firstElementChild;
    this.parts = Object.fromEntries(
      ["waiting", "reasoning", "thoughts", "prose", "failure", "figures", "copy", "again"].map((name) => [
        name,
        this.element.querySelector(`.${name}`),
      ]),
    );
    this.element.querySelector(".question p").textContent = exchange.question;
    this.parts.again.addEventListener("click", again);
    this.parts.copy.addEventListener("click", () => this.#copy());
    this.parts.reasoning.firstElementChild.addEventListener("click", reading);
    this.thoughts = document.createTextNode("");
    this.parts.thoughts.append(this.thoughts);
    apply(this.element);
    this.draw();
  }

  // Draw with the next frame, however many chunks come until then.
  drawSoon() {
    this.#frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { exchange, parts } = this;
    this.element.querySelector(".answer").setAttribute("aria-busy", String(!exchange.done));
    parts.waiting.hidden = exchange.done || exchange.firstAt !== null;
    this.#drawReasoning();
    render(parts.prose, exchange.answer.trimStart());
    parts.failure.hidden = exchange.failure === null;
    parts.failure.textContent = exchange.failure ?? "";
    parts.figures.textContent = this.#figures().join(" · ");
    parts.copy.hidden = !exchange.done || !exchange.answer || !navigator.clipboard;
    parts.again.hidden = !exchange.done;
  }

  #drawReasoning() {
    const { exchange, parts, thoughts } = this;
    const text = exchange.reasoning.trim();
    parts.reasoning.hidden = !text;
    parts.reasoning.firstElementChild.textContent = this.#reasoningTitle();
    const box = parts.thoughts;
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
    if (text.startsWith(thoughts.data)) thoughts.appendData(text.slice(thoughts.data.length));
    else thoughts.data = text;
    const thinks = !exchange.done && exchange.answerAt === null;
    parts.reasoning.classList.toggle("streams", thinks);
    if (text && thinks && !this.#collapsed) parts.reasoning.open = true;
    if (atEnd) box.scrollTop = box.scrollHeight;
    if (exchange.answerAt !== null && !this.#collapsed) {
      this.#collapsed = true;
      parts.reasoning.open = false;
    }
  }

  #reasoningTitle() {
    const { exchange } = this;
    if (!exchange.done && exchange.answerAt === null) return word("reasoningNow");
    const time = duration(exchange.reasoningTime);
    const tokens = exchange.reasoningTokens;
    return tokens ? word("reasonedTokens", { time, tokens: number(tokens) }) : word("reasoned", { time });
  }

  #figures() {
    const { exchange } = this;
    const figures = [];
    if (exchange.rate !== null) figures.push(word("rate", { rate: number(exchange.rate, 1) }));
    if (exchange.firstTokenTime !== null) {
      figures.push(word("firstToken", { time: duration(exchange.firstTokenTime) }));
    }
    if (exchange.tokens !== null) figures.push(this.#count());
    figures.push(...exchange.interventions.filter(knows).map((name) => word(name)));
    if (exchange.stopped) figures.push(word("stopped"));
    else if (exchange.finishReason === "length") figures.push(word("cut"));
    if (exchange.done && !exchange.stopped && !exchange.failure && !exchange.answer) figures.push(word("noAnswer"));
    return figures;
  }

  #count() {
    const tokens = number(this.exchange.tokens);
    const reasoning = this.exchange.reasoningTokens;
    return reasoning ? word("tokensReasoning", { tokens, reasoning: number(reasoning) }) : word("tokens", { tokens });
  }

  // Forget how the last attempt was shown.
  reset() {
    this.#collapsed = false;
    this.draw();
  }

  async #copy() {
    await navigator.clipboard.writeText(this.exchange.answer.trim());
    this.parts.copy.textContent = word("copied");
    setTimeout(() => (this.parts.copy.textContent = word("copy")), 1500);
  }

  translate() {
    apply(this.element);
    this.draw();
  }
}
