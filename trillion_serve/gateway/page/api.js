// The server's API as the page uses it. Addresses are relative, so that the page works behind any path prefix.

import * as settings from "./settings.js";
import { EventDecoder } from "./sse.js";
import { word } from "./words.js";

// What went wrong, in the server's own words where it had any.
export class ApiFailure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export async function models() {
  const response = await send("v1/models");
  return (await response.json()).data.map((model) => model.id);
}

export async function metrics() {
  return (await send("metrics")).text();
}

// The chunks of a streamed chat completion. Aborting the signal raises the browser's AbortError.
export async function* chat(body, signal) {
  const response = await send("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    throw new ApiFailure(word("notEvents"), response.status);
  }
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiFailure(chunk.error.message);
    yield chunk;
  }
  throw new ApiFailure(word("broken"));
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  const decoder = new EventDecoder();
  for (;;) {
    const { done, value } = await reading(reader);
    if (done) return;
    yield* decoder.decode(value);
  }
}

async function reading(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiFailure(word("broken"));
  }
}

async function send(path, options = {}) {
  const key = settings.apiKey.value;
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiFailure(word("unreachable"));
  }
  if (!response.ok) throw new ApiFailure(await said(response), response.status);
  return response;
}

async function said(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    // Not one of our errors: a proxy in front of the server may answer in plain words, or in a whole web page.
    return text && text.length < 500 && !text.trimStart().startsWith("<") ? text : word("unreadable", { status: response.status });
  }
}
