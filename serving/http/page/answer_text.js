// Text of a model as nodes. It is a stranger's text: it becomes text nodes and nothing else.

import { copyButton } from "./copying.js";

/** Show `text` in `container`; called again with a longer text, it only adds what is new. */
export function showText(container, text) {
  const blocks = split(text);
  blocks.forEach((block, index) => {
    let element = container.children[index];
    if (!element || element.dataset.kind !== block.kind || element.dataset.language !== block.language) {
      const made = block.kind === "code" ? codeBlock(block.language) : paragraph();
      if (element) element.replaceWith(made);
      else container.append(made);
      element = made;
    }
    setText(element.querySelector("code") ?? element, block.text);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

/** Split at lines that begin with three backticks; a block that isn't closed yet is code too. */
function split(text) {
  const blocks = [];
  let lines = [];
  let language = null;
  const finish = () => {
    const joined = lines.join("\n");
    const withoutBlankEdges = joined.replace(/^\n+|\n+$/g, "");
    if (language !== null) blocks.push({ kind: "code", language, text: joined });
    else if (withoutBlankEdges) blocks.push({ kind: "text", language: "", text: withoutBlankEdges });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const fence = line.match(/^ {0,3}```([^`]*)$/);
    if (fence && language === null) {
      finish();
      language = fence[1].trim();
    } else if (fence && fence[1].trim() === "") {
      finish();
      language = null;
    } else {
      lines.push(line);
    }
  }
  finish();
  return blocks;
}

function paragraph() {
  const element = document.createElement("p");
  element.dataset.kind = "text";
  element.dataset.language = "";
  return element;
}

function codeBlock(language) {
  const figure = document.createElement("figure");
  figure.dataset.kind = "code";
  figure.dataset.language = language;
  const caption = document.createElement("figcaption");
  const code = document.createElement("code");
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // so that the keyboard can scroll it
  pre.append(code);
  caption.append(language || "text", copyButton("Copy code", () => code.textContent));
  figure.append(caption, pre);
  return figure;
}

function setText(element, text) {
  const node = element.firstChild ?? element.appendChild(document.createTextNode(""));
  // Appending leaves alone what the reader has selected.
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}
