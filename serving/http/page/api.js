// Requests to the server, and its refusals as sentences. Addresses are relative, so that the
// server may sit below a path of a proxy.

import { apiKey } from "./api_key.js";
import { eventData } from "./sse.js";

/** Something that the reader of the page should know, in a sentence. */
export class ServerError extends Error {
  constructor(message, { status = null, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the models that the server has, as /v1/models describes them. */
export async function listModels() {
  const response = await request("v1/models", {});
  return (await response.json()).data;
}

/** Ask for a completion at `path`; return the response, whose body is to be read with pieces(). */
export function openStream(path, parameters, signal) {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...parameters, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
}

/**
 * Yield what arrives of a completion: { text, finishReason, usage }, the last two often null.
 *
 * Throws ServerError if the server reports one, or if the stream ends before its end is announced.
 */
export async function* pieces(response, signal) {
  let isComplete = false;
  try {
    for await (const data of eventData(response.body)) {
      // To leave now would close the connection under the server's last bytes.
      isComplete = data === "[DONE]";
      if (isComplete) continue;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message, event.error);
      const choice = event.choices[0];
      yield {
        text: choice?.delta?.content ?? choice?.text ?? "",
        finishReason: choice?.finish_reason ?? null,
        usage: event.usage ?? null,
      };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    throw new ServerError(`The answer broke off (${error.message}): try again.`);
  }
  if (!isComplete) throw new ServerError("The answer broke off before its end: try again.");
}

async function request(path, options) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError("The server can't be reached: see whether it is still running.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  let error;
  try {
    ({ error } = await response.json());
  } catch {
    // A proxy's page: the status says more.
  }
  let message = error?.message ?? `The server refused the request with status ${status}.`;
  const wait = response.headers.get("Retry-After");
  if (wait) message += ` The server asks to wait for ${wait} ${wait === "1" ? "second" : "seconds"}.`;
  return new ServerError(message, { status, code: error?.code });
}
