// The chat page: wires the parts in index.html to the conversation.

import * as api from "./api.js";
import { Exchange } from "./exchange.js";
import { Follower } from "./follow.js";
import { KeyDialog } from "./key.js";
import { KvMeter } from "./kv.js";
import * as settings from "./settings.js";
import { Turn } from "./turn.js";
import { apply, label, language, number, speak, word } from "./words.js";

const byId = (id) => document.getElementById(id);
const [composer, message, send, thinking, budget, model] = ["composer", "message", "send", "thinking", "budget", "model"].map(byId);

let turns = [];
let answering = null; // The AbortController of the answer that streams.

const follower = new Follower(byId("scroller"), byId("content"), byId("latest"));
const meter = new KvMeter(showKv, () => model.value);
const keys = new KeyDialog(() => {
  meter.look({ again: true });
  if (!model.value) loadModels();
});

async function ask(question) {
  const turn = new Turn(new Exchange(question), { again: () => answer(turn), reading: () => follower.release() });
  turns.push(turn);
  byId("conversation").append(turn.element);
  byId("welcome").hidden = true;
  await answer(turn);
}

async function answer(turn) {
  if (answering) return;
  const controller = new AbortController();
  setAnswering(controller);
  follower.follow();
  try {
    await keys.unlocked(() => receive(turn, controller.signal));
    turn.exchange.end();
  } catch (error) {
    if (!(error instanceof api.ApiFailure) && error.name !== "AbortError") console.error(error);
    turn.exchange.end(error.name === "AbortError" ? { stopped: true } : { failure: error.message });
    // Nobody reads on: let the server know.
    controller.abort();
  }
  turn.draw();
  if (answering === controller) setAnswering(null);
}

async function receive(turn, signal) {
  const { exchange } = turn;
  exchange.begin(performance.now());
  turn.reset();
  for await (const chunk of api.chat(request(turn), signal)) {
    exchange.take(chunk, performance.now());
    turn.drawSoon();
  }
}

function request(turn) {
  const past = turns.slice(0, turns.indexOf(turn)).flatMap(({ exchange }) => exchange.messages);
  const limit = thinking.checked && budget.value !== "" ? { thinking_token_budget: budget.valueAsNumber } : {};
  return {
    model: model.value,
    messages: [...past, { role: "user", content: turn.exchange.question }],
    chat_template_kwargs: { enable_thinking: thinking.checked },
    ...limit,
  };
}

function setAnswering(controller) {
  answering = controller;
  composer.classList.toggle("busy", Boolean(controller));
  document.body.classList.toggle("busy", Boolean(controller));
  label(send, controller ? "stop" : "send");
  updateSend();
}

function stop() {
  answering?.abort();
}

function updateSend() {
  send.disabled = !answering && (!message.value.trim() || !model.value);
}

function submit() {
  const question = message.value.trim();
  if (answering || !question || !model.value || !budgetIsRight()) return;
  message.value = "";
  message.focus();
  ask(question);
}

function budgetIsRight() {
  budget.setCustomValidity("");
  if (!thinking.checked || budget.validity.valid) return true;
  budget.setCustomValidity(word("budgetWrong"));
  budget.reportValidity();
  return false;
}

function clear() {
  stop();
  turns = [];
  setAnswering(null);
  byId("conversation").replaceChildren();
  byId("welcome").hidden = false;
  message.focus();
}

async function loadModels() {
  const trouble = byId("trouble");
  trouble.hidden = true;
  try {
    const names = await keys.unlocked(api.models);
    const chosen = names.includes(settings.model.value) ? settings.model.value : names[0];
    model.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  } catch (error) {
    trouble.firstElementChild.textContent = error.message;
    trouble.hidden = false;
  }
  model.hidden = !model.value;
  updateSend();
  meter.look();
}

function showKv(share) {
  const kv = byId("kv");
  kv.hidden = share === null;
  if (share === null) return;
  const percent = share * 100;
  kv.setAttribute("aria-valuenow", percent.toFixed(1));
  byId("kv-fill").style.width = `${Math.min(percent, 100)}%`;
  byId("kv-share").textContent = `${number(percent, percent > 0 && percent < 10 ? 1 : 0)}%`;
}

function switchTheme() {
  const dark = settings.theme.value ? settings.theme.value === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  settings.theme.value = dark ? "light" : "dark";
  document.documentElement.dataset.theme = settings.theme.value;
}

function switchLanguage() {
  speak(language() === "ko" ? "en" : "ko");
  for (const turn of turns) turn.translate();
}

// Enter that ends the composing of a Korean syllable belongs to the input method. Safari says so by its code alone.
function composes(event) {
  return event.isComposing || event.keyCode === 229;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) stop();
  else submit();
});
message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || composes(event)) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !composes(event) && !document.querySelector("dialog[open]")) stop();
});
message.addEventListener("input", updateSend);
budget.addEventListener("input", () => {
  budget.setCustomValidity("");
  settings.budget.value = budget.value;
});
thinking.addEventListener("change", () => {
  budget.disabled = !thinking.checked;
  settings.thinking.value = thinking.checked ? "on" : "off";
});
model.addEventListener("change", () => {
  settings.model.value = model.value;
  meter.look();
});
byId("clear").addEventListener("click", clear);
byId("theme").addEventListener("click", switchTheme);
byId("language").addEventListener("click", switchLanguage);
byId("trouble").querySelector("button").addEventListener("click", loadModels);
for (const example of byId("welcome").querySelectorAll("button")) {
  example.addEventListener("click", () => {
    message.value = example.textContent;
    updateSend();
    message.focus();
  });
}

thinking.checked = settings.thinking.value !== "off";
budget.disabled = !thinking.checked;
budget.value = settings.budget.value ?? "";
apply(document);
updateSend();
loadModels();
