// How fast an answer comes.

/** Times one answer from its construction on. */
export class Meter {
  constructor() {
    this.started = performance.now();
    this.first = null;
    this.last = null;
    this.pieces = 0;
    this.usage = null;
    this.ending = ""; // how the answer ended, if not by itself
  }

  /** Count a piece of text. The server sends one for each token that ends a character. */
  tick() {
    this.last = performance.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  /** Whether nothing came: neither text nor, of an answer without any, the server's count. */
  get isEmpty() {
    return this.first === null && this.usage === null;
  }

  /**
   * Return the figures as a line, which is empty before anything came.
   *
   * Until the server has said its count, they are marked "about".
   */
  summary() {
    if (this.isEmpty) return "";
    const tokens = this.usage?.completion_tokens ?? this.pieces;
    const about = this.usage ? "" : "about ";
    const parts = [`${about}${count(tokens, "token")}`];
    if (this.usage) parts.push(`after ${this.usage.prompt_tokens} of the prompt`);
    const seconds = (this.last - this.first) / 1000;
    if (tokens > 1 && seconds > 0) {
      parts.push(`${about}${significant((tokens - 1) / seconds)} tokens/s`);
    }
    if (this.first !== null) {
      parts.push(`first after ${significant((this.first - this.started) / 1000)} s`);
    }
    if (this.ending) parts.push(this.ending);
    return parts.join(" · ");
  }
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

function significant(value) {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(2);
}
