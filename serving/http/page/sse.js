// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
// EventSource can't send a POST, so the body of a fetch is parsed here.

/** Yield the data of each event of `body`, a stream of bytes that may be split anywhere. */
export async function* eventData(body) {
  // The decoder keeps the first bytes of a character that continues in the next chunk.
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let unfinished = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // An event without its blank line is incomplete: the standard drops it.
      // A carriage return at the end may be the first half of a line break.
      const lines = (unfinished + value).split(/\r\n|\n|\r(?!$)/);
      unfinished = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice("data:".length).replace(/^ /, ""));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // A reader that is left early closes the connection, so that the server stops too.
    reader.cancel().catch(() => {});
  }
}
