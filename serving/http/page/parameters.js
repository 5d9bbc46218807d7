// The settings, as fields of a request.

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

const field = (name) => document.getElementById(name);

/** Return the parameters that were filled in; the server decides about the others. */
export function parameters() {
  const filled = NUMBERS.filter((name) => field(name).value !== "");
  const chosen = Object.fromEntries(filled.map((name) => [name, field(name).valueAsNumber]));
  const stop = stopStrings();
  return stop.length ? { ...chosen, stop } : chosen;
}

/** Return the system message as the messages that a conversation begins with: one, or none. */
export function systemMessages() {
  const content = field("system").value.trim();
  return content ? [{ role: "system", content }] : [];
}

function stopStrings() {
  const lines = field("stop-strings").value.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replaceAll("\\n", "\n"));
}
