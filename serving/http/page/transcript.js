// The conversation as it is shown.

import { showText } from "./answer_text.js";
import { copyButton } from "./copying.js";

const NAMES = { user: "You", assistant: "Model" };
const NEAR_THE_END = 80; // pixels

const transcript = document.getElementById("transcript");
const welcome = document.getElementById("welcome");

/** One message on the page; `message` is { role, content }, and its content may grow. */
export class Turn {
  constructor(message) {
    this.message = message;
    this.element = document.createElement("article");
    this.element.className = message.role;
    const heading = document.createElement("h2");
    heading.textContent = NAMES[message.role];
    this.text = document.createElement("div");
    this.text.className = "text";
    this.figures = document.createElement("span");
    this.figures.className = "figures";
    this.buttons = document.createElement("span");
    this.buttons.className = "buttons";
    const footer = document.createElement("footer");
    footer.append(this.figures, this.buttons);
    this.element.append(heading, this.text, footer);
    welcome.hidden = true;
    transcript.append(this.element);
    this.show();
    transcript.scrollTop = transcript.scrollHeight;
  }

  /** Show what the message's content is now, and `figures` below it. */
  show(figures = "") {
    stayingAtEnd(() => {
      showText(this.text, this.message.content);
      this.figures.textContent = figures;
    });
  }

  /** Say whether the message is still growing: a screen reader waits for its end. */
  set growing(value) {
    this.element.setAttribute("aria-busy", String(value));
  }

  /** Offer to copy the message, and what `actions` ({ label: function }) names. */
  offer(actions = {}) {
    const others = Object.entries(actions).map(([label, action]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.addEventListener("click", action);
      return button;
    });
    const copy = copyButton("Copy", () => this.message.content);
    stayingAtEnd(() => this.buttons.replaceChildren(copy, ...others));
  }

  remove() {
    this.element.remove();
    welcome.hidden = transcript.querySelector("article") !== null;
  }
}

/** Make a change; who has scrolled up to read isn't pulled down by it. */
function stayingAtEnd(change) {
  const below = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight;
  change();
  if (below < NEAR_THE_END) transcript.scrollTop = transcript.scrollHeight;
}
