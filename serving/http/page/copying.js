// Buttons that copy a text.

const COPIED_FOR = 1500; // milliseconds that the button says so

/** Return a button that copies what `text` returns when it is pressed. */
export function copyButton(label, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Not allowed here";
    setTimeout(() => (button.textContent = label), COPIED_FOR);
  });
  return button;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // Browsers have no clipboard for plain HTTP from another machine.
  }
}
