// The page: a conversation, and the one request that may be under way.

import { ServerError, listModels, openStream, pieces } from "./api.js";
import { withApiKey } from "./api_key.js";
import { Meter } from "./meter.js";
import { parameters, systemMessages } from "./parameters.js";
import { Turn } from "./transcript.js";

const element = (id) => document.getElementById(id);
const composer = element("composer");
const message = element("message");
const mode = element("mode");
const model = element("model");
const send = element("send");
const settings = element("settings");
const stop = element("stop");
const toggleSettings = element("toggle-settings");

let models = [];
let turns = [];
let underWay = null; // the AbortController of the request

async function start() {
  showSettings(matchMedia("(min-width: 60rem)").matches);
  showMode();
  try {
    models = (await withApiKey(listModels)).filter(({ task }) => task === "text-generation");
    if (!models.length) throw new ServerError("There is no model here that generates text for you.");
    model.replaceChildren(...models.map(({ id }) => new Option(id, id)));
    showModel();
  } catch (error) {
    showError(error.message);
  }
}

function submit() {
  if (underWay || !settingsAreValid()) return;
  const content = message.value;
  const more = mode.value === "continue" && turns.length > 0;
  if (!content.trim() && !more) return;
  if (content) addTurn("user", content);
  message.value = "";
  answer();
}

function regenerate() {
  if (!settingsAreValid()) return;
  turns.pop().remove();
  answer();
}

function settingsAreValid() {
  if (settings.checkValidity()) return true;
  showSettings(true);
  return settings.reportValidity();
}

/** Let the model answer the conversation as it is. */
async function answer() {
  const request = nextRequest();
  const turn = addTurn("assistant", "");
  const controller = new AbortController();
  const meter = new Meter();
  setUnderWay(controller);
  showError("");
  say("The model answers.");
  turn.growing = true;
  try {
    await receive(turn, meter, request, controller.signal);
    say(`The answer is complete: ${meter.summary()}.`);
  } catch (error) {
    const stopped = controller.signal.aborted;
    meter.ending = stopped ? "stopped" : "broken off";
    say(stopped ? "Stopped." : "");
    showError(stopped ? "" : error.message);
  }
  turn.growing = false;
  turn.show(meter.summary());
  if (underWay !== controller) return; // a new conversation has begun
  setUnderWay(null);
  if (meter.isEmpty) withdraw();
  turns.at(-1)?.offer({ Regenerate: regenerate });
}

/** Show the answer as it comes. Tokens may come faster than frames: it is drawn once a frame. */
async function receive(turn, meter, { path, body }, signal) {
  const response = await withApiKey(() => openStream(path, body, signal));
  let frame = null;
  const draw = () => {
    frame = null;
    turn.show(meter.summary());
  };
  try {
    for await (const { text, finishReason, usage } of pieces(response, signal)) {
      if (text) meter.tick();
      if (finishReason === "length") meter.ending = "cut at the maximum";
      meter.usage = usage;
      turn.message.content += text;
      frame ??= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(frame);
  }
}

function nextRequest() {
  const common = { model: model.value, ...parameters() };
  const messages = turns.map((turn) => turn.message);
  if (mode.value === "continue") {
    const prompt = messages.map(({ content }) => content).join("");
    return { path: "v1/completions", body: { ...common, prompt } };
  }
  const whole = [...systemMessages(), ...messages];
  return { path: "v1/chat/completions", body: { ...common, messages: whole } };
}

function addTurn(role, content) {
  turns.at(-1)?.offer();
  const turn = new Turn({ role, content });
  turns.push(turn);
  return turn;
}

/** Take back an answer that never came, and give its question back to who wrote it. */
function withdraw() {
  turns.pop().remove();
  if (turns.at(-1)?.message.role !== "user" || message.value) return;
  const question = turns.pop();
  question.remove();
  message.value = question.message.content;
}

function newConversation() {
  underWay?.abort();
  setUnderWay(null);
  turns.forEach((turn) => turn.remove());
  turns = [];
  showError("");
  message.focus();
}

function setUnderWay(controller) {
  const focused = document.activeElement;
  underWay = controller;
  send.hidden = controller !== null;
  stop.hidden = controller === null;
  // A button that disappears would take the focus with it.
  if (focused === send && send.hidden) stop.focus();
  if (focused === stop && stop.hidden) send.focus();
}

/** Without a chat template a model can only continue texts. */
function showModel() {
  const chats = models[model.selectedIndex].has_chat_template;
  mode.querySelector("[value=chat]").disabled = !chats;
  mode.value = chats ? "chat" : "continue";
  showMode();
}

function showMode() {
  const continuing = mode.value === "continue";
  element("message-label").textContent = continuing ? "Text to continue" : "Message";
  message.placeholder = element("message-label").textContent;
  send.textContent = continuing ? "Continue" : "Send";
  element("system").disabled = continuing;
  element("mode-hint").hidden = !continuing;
}

function showSettings(shown) {
  settings.hidden = !shown;
  toggleSettings.setAttribute("aria-expanded", String(shown));
}

function showError(sentence) {
  element("error").textContent = sentence;
  element("error").hidden = !sentence;
}

function say(sentence) {
  element("status").textContent = sentence;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") underWay?.abort();
});
settings.addEventListener("submit", (event) => event.preventDefault());
stop.addEventListener("click", () => underWay?.abort());
model.addEventListener("change", showModel);
mode.addEventListener("change", showMode);
toggleSettings.addEventListener("click", () => showSettings(settings.hidden));
element("new").addEventListener("click", newConversation);
start();
