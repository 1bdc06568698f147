// Server-sent events, decoded as they arrive: feed text in any pieces, get the data of each whole event.

export class EventDecoder {
  #rest = "";
  #data = [];

  // A carriage return at the end waits: the line feed that belongs to it may be in the next piece.
  decode(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line) {
    if (line === "") {
      const whole = this.#data;
      this.#data = [];
      return whole.length ? [whole.join("\n")] : [];
    }
    if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    return [];
  }
}
