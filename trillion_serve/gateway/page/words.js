// Every word of the page, in Korean and English. Elements name theirs in data-word (text) or data-label (name).

import * as settings from "./settings.js";

export const WORDS = {
  en: {
    title: "trillion-serve chat",
    language: "한국어로 보기",
    languageShort: "한",
    theme: "Switch between dark and light",
    key: "API key",
    clear: "Clear the conversation",
    model: "Model",
    noModels: "no models",
    kv: "KV cache in use",
    greeting: "What shall we think about?",
    hint: "Answers stream from this server. The conversation lives in this tab only.",
    example1: "How do you read 347",
    example2: "Explain in three sentences why the sky is blue.",
    example3: "한국의 가을을 두 문장으로 소개해 주세요.",
    conversation: "Conversation",
    you: "You asked",
    message: "Message",
    placeholder: "Write a message",
    thinking: "Thinking",
    budget: "Budget",
    budgetLabel: "Thinking budget in tokens",
    budgetUnit: "tokens",
    budgetNone: "no limit",
    budgetWrong: "The thinking budget is a whole number of tokens, 0 or more. Leave it empty for no limit.",
    send: "Send",
    stop: "Stop",
    keys: "Enter sends · Shift+Enter for a line · Esc stops",
    latest: "To the latest",
    waiting: "Waiting for the first token",
    reasoningNow: "Thinking",
    reasoned: "Thought for {time}",
    reasonedTokens: "Thought for {time} · {tokens} tokens",
    rate: "{rate} tokens/s",
    firstToken: "first token {time}",
    tokens: "{tokens} tokens",
    tokensReasoning: "{tokens} tokens, {reasoning} of them thinking",
    stopped: "stopped",
    cut: "cut at the token limit",
    thinking_budget: "thinking ended at its limit",
    reasoning_loop: "thinking that went in circles was ended",
    content_loop: "an answer that went in circles was ended",
    empty_answer: "an empty answer was averted",
    noAnswer: "The model gave no answer.",
    copy: "Copy",
    copied: "Copied",
    again: "Try again",
    keyTitle: "This server asks for an API key",
    keyNote: "It stays in this tab and is sent to this server only.",
    keyUse: "Use this key",
    keyForget: "Forget it",
    cancel: "Cancel",
    unreachable: "The server cannot be reached. Check that it runs, and try again.",
    broken: "The connection ended before the answer did.",
    unreadable: "The server's answer could not be read (status {status}).",
    notEvents: "The server answered without a stream of events.",
  },
  ko: {
    title: "trillion-serve 대화",
    language: "View in English",
    languageShort: "EN",
    theme: "어두운 화면과 밝은 화면 바꾸기",
    key: "API 키",
    clear: "대화 지우기",
    model: "모델",
    noModels: "모델 없음",
    kv: "KV 캐시 사용량",
    greeting: "무엇을 함께 생각해 볼까요?",
    hint: "답변은 이 서버에서 바로 전달되고, 대화는 이 탭에만 남습니다.",
    example1: "한글로 읽어 보세요: 347",
    example2: "하늘이 파란 까닭을 세 문장으로 설명해 주세요.",
    example3: "Introduce autumn in Korea in two sentences.",
    conversation: "대화",
    you: "내 질문",
    message: "메시지",
    placeholder: "메시지를 입력하세요",
    thinking: "생각하기",
    budget: "한도",
    budgetLabel: "생각 토큰 한도",
    budgetUnit: "토큰",
    budgetNone: "없음",
    budgetWrong: "생각 토큰 한도는 0 이상의 정수입니다. 한도를 두지 않으려면 비워 두세요.",
    send: "보내기",
    stop: "멈추기",
    keys: "Enter 보내기 · Shift+Enter 줄 바꿈 · Esc 멈추기",
    latest: "최신 내용으로",
    waiting: "첫 토큰을 기다리는 중",
    reasoningNow: "생각하는 중",
    reasoned: "{time} 동안 생각함",
    reasonedTokens: "{time} 동안 생각함 · {tokens}토큰",
    rate: "초당 {rate}토큰",
    firstToken: "첫 토큰 {time}",
    tokens: "{tokens}토큰",
    tokensReasoning: "{tokens}토큰 (생각 {reasoning})",
    stopped: "멈춤",
    cut: "토큰 한도에서 끊김",
    thinking_budget: "한도에서 생각을 마침",
    reasoning_loop: "되풀이되던 생각을 마침",
    content_loop: "되풀이되던 답변을 마침",
    empty_answer: "빈 답변을 막음",
    noAnswer: "모델이 답하지 않았습니다.",
    copy: "복사",
    copied: "복사함",
    again: "다시 시도",
    keyTitle: "API 키가 필요한 서버입니다",
    keyNote: "키는 이 탭에만 남고 이 서버로만 전송됩니다.",
    keyUse: "이 키 사용",
    keyForget: "키 지우기",
    cancel: "취소",
    unreachable: "서버에 연결할 수 없습니다. 서버가 실행 중인지 확인한 뒤 다시 시도하세요.",
    broken: "답변이 끝나기 전에 연결이 끊어졌습니다.",
    unreadable: "서버의 응답을 읽을 수 없습니다 (상태 {status}).",
    notEvents: "서버가 이벤트 스트림이 아닌 응답을 보냈습니다.",
  },
};

const preferred = () => (navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en");

let spoken = settings.language.value in WORDS ? settings.language.value : preferred();

export const language = () => spoken;

export const knows = (name) => name in WORDS.en;

export function word(name, values = {}) {
  return WORDS[spoken][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(spoken, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

// Milliseconds as a reader wants them: "84 ms" or "2.3 s".
export function duration(ms) {
  const [unit, value, digits] = ms < 995 ? ["millisecond", ms, 0] : ["second", ms / 1000, 1];
  const style = { style: "unit", unit, unitDisplay: spoken === "ko" && unit === "second" ? "long" : "short" };
  return new Intl.NumberFormat(spoken, { ...style, minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

export function speak(language) {
  spoken = language;
  settings.language.value = language;
  apply(document);
}

// Write the words into a part of the page.
export function apply(root) {
  if (root === document) {
    document.documentElement.lang = spoken;
    document.title = word("title");
  }
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of root.querySelectorAll("[data-label]")) label(element, element.dataset.label);
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = word(element.dataset.placeholder);
  }
}

// Name an element for assistive technology; what has no text of its own shows its name in a tooltip too.
export function label(element, name) {
  element.dataset.label = name;
  element.setAttribute("aria-label", word(name));
  if (element.matches("button, [role=meter]")) element.title = word(name);
}
