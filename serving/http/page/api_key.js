// The API key: asked for when the server wants one, and kept in this tab only.

const STORED = "serve-llm.api-key";

const dialog = document.getElementById("key-dialog");
const reason = document.getElementById("key-reason");
const input = document.getElementById("key");
const cancel = document.getElementById("key-cancel");

/** Return the key that was entered in this tab, or null. */
export function apiKey() {
  return sessionStorage.getItem(STORED);
}

/**
 * Return what `action` returns; while the server refuses it for want of a key, ask for one.
 *
 * Rethrows the refusal if the dialog is cancelled.
 */
export async function withApiKey(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (error.status !== 401) throw error;
      sessionStorage.removeItem(STORED);
      const key = await ask(error.message);
      if (!key) throw error;
      sessionStorage.setItem(STORED, key);
    }
  }
}

cancel.addEventListener("click", () => dialog.close());

function ask(why) {
  reason.textContent = why;
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    const closed = () => {
      resolve(dialog.returnValue === "use" ? input.value : null);
      input.value = "";
    };
    dialog.addEventListener("close", closed, { once: true });
  });
}
