// A question and what came back for it, with the moments (performance.now()) that tell how fast it came.

// A browser that was busy takes in many chunks at once: a shorter time than this between them says nothing.
const MEASURABLE_MS = 100;

export class Exchange {
  constructor(question) {
    this.question = question;
    this.begin(0);
  }

  // Ask, or ask once more: whatever came before is forgotten.
  begin(now) {
    Object.assign(this, { reasoning: "", answer: "", usage: null, finishReason: null, failure: null, stopped: false });
    Object.assign(this, { interventions: [], done: false, startedAt: now, firstAt: null, answerAt: null, lastAt: null });
  }

  // Take in a chunk of a streamed chat completion.
  take(chunk, now) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { content, reasoning_content, reasoning } = choice.delta ?? {};
    this.reasoning += reasoning_content ?? reasoning ?? "";
    this.answer += content ?? "";
    if (this.reasoning || this.answer) this.firstAt ??= now;
    if (this.answer.trim()) this.answerAt ??= now;
    if (content || reasoning_content || reasoning) this.lastAt = now;
    // What the gateway did that the model would not have done: it ended a loop, or reasoning at its budget.
    this.interventions.push(...(choice.interventions ?? []));
    this.finishReason = choice.finish_reason ?? this.finishReason;
  }

  end({ stopped = false, failure = null } = {}) {
    Object.assign(this, { done: true, stopped, failure });
  }

  // The messages that tell this exchange to the model: without its reasoning, and only if there is an answer.
  get messages() {
    const question = { role: "user", content: this.question };
    return this.answer.trim() ? [question, { role: "assistant", content: this.answer }] : [];
  }

  // Milliseconds from the question to the first token, or null.
  get firstTokenTime() {
    return this.firstAt === null ? null : this.firstAt - this.startedAt;
  }

  // Milliseconds from the question to the answer's beginning, or to the last that was heard.
  get reasoningTime() {
    return (this.answerAt ?? this.lastAt) - this.startedAt;
  }

  get tokens() {
    return this.usage?.completion_tokens ?? null;
  }

  get reasoningTokens() {
    return this.usage?.completion_tokens_details?.reasoning_tokens ?? 0;
  }

  // Tokens a second after the first, or over everything if all came together; null while not counted.
  get rate() {
    if (!this.tokens || this.firstAt === null) return null;
    const streamed = this.lastAt - this.firstAt;
    return streamed >= MEASURABLE_MS && this.tokens > 1
      ? (this.tokens - 1) / (streamed / 1000)
      : this.tokens / ((this.lastAt - this.startedAt) / 1000);
  }
}
