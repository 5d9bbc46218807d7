"""The chat page, in headless Chromium, over the real server."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from serving.http.app import create_app
from serving.http.keys import KeyStore
from serving.http.request_limits import RequestLimits
from serving.http.served_model import open_models
from serving.http.state import ServerState
from tests.serving.http.chat_page import BUSY, ChatPage, headless_chromium
from tests.serving.http.running_server import running_server
from tests.serving.http.scripted_answers import (
    ScriptedAnswers,
    ending,
    error_document,
    event,
    piece,
    refusal,
    stream,
)
from tests.serving.tiny_bundle import make_bundle
from tests.serving.tiny_graph import graph_info

# So much that an answer of this length is never complete before it is stopped.
CAPACITY = 65_536
HOSTILE = '<img src=x onerror="window.hacked = 1"><b>bold</b> &amp; '
CODE = "def f(x):\n    return x  # <script>window.hacked = 1</script>\n"


class Server(ScriptedAnswers):
    """The application at ``url`` with a model that chats, one without a template, an encoder."""

    url: str

    def __init__(self, bundles: dict[str, Path]) -> None:
        keys = KeyStore.open(None, {})
        self.state = ServerState(
            open_models(bundles, {"capacity": CAPACITY}), RequestLimits(), keys
        )
        super().__init__(create_app(self.state))

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with headless_chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, encoder: Callable[[str], Path]
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("bundles")
    graph = graph_info().model_copy(update={"max_length": CAPACITY}).model_dump()
    bundles = {name: make_bundle(directory / name, graph=graph) for name in ("chatty", "plain")}
    manifest = json.loads((bundles["plain"] / "bundle.json").read_text())
    del manifest["files"]["chat_template.jinja"]
    (bundles["plain"] / "bundle.json").write_text(json.dumps(manifest))
    (bundles["plain"] / "chat_template.jinja").unlink()
    server = Server({"vectors": encoder("sentences") / "bundle", **bundles})
    with running_server(server) as server.url:
        while not server.state.is_ready:
            assert server.state.failure is None
            time.sleep(0.02)
        yield server


@pytest.fixture
def page(browser: Chrome, server: Server) -> Iterator[ChatPage]:
    yield ChatPage(browser, server.url)
    # A breach of the content security policy is logged here.
    unexpected = [e["message"] for e in browser.get_log("browser") if e["source"] != "network"]
    assert not unexpected


def test_page_asks_its_own_server_only(page: ChatPage, server: Server) -> None:
    page.choose("model", "plain")
    resources = page.browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert {url.removeprefix(server.url) for url in resources} >= {"main.js", "v1/models"}
    assert all(url.startswith(server.url) for url in resources)
    policy = httpx.get(server.url).headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
    assert "unsafe" not in " ".join(policy)


def test_only_models_that_generate_can_be_chosen(page: ChatPage) -> None:
    assert [each.text for each in page.elements("#model option")] == ["chatty", "plain"]


def test_conversation_equals_the_api(page: ChatPage, server: Server) -> None:
    page.set(system="be nice", temperature=1.5, top_p=0.9, top_k=20, max_tokens=12, seed=7)
    page.element("stop-strings").send_keys("zq\nj\\nj")
    parameters = {
        "model": "chatty",
        "temperature": 1.5,
        "top_p": 0.9,
        "top_k": 20,
        "max_tokens": 12,
        "seed": 7,
        "stop": ["zq", "j\nj"],
    }
    disconnects = server.metric("serve_llm_disconnects_total")
    messages = [{"role": "system", "content": "be nice"}]
    shown = []
    for question in ("hello there", "and\nthen"):
        first, *more = question.split("\n")
        lines = [key for line in more for key in (Keys.SHIFT, Keys.ENTER, Keys.NULL, line)]
        page.send(first, *lines)
        messages.append({"role": "user", "content": question})
        body = {**parameters, "messages": messages}
        document = httpx.post(f"{server.url}v1/chat/completions", json=body).json()
        expected = document["choices"][0]["message"]["content"]
        shown += [("You", question), ("Model", expected)]
        assert page.turns == shown
        usage = document["usage"]
        assert page.figures.startswith(
            f"{usage['completion_tokens']} tokens · after {usage['prompt_tokens']} of the prompt · "
        )
        assert page.status == f"The answer is complete: {page.figures}."
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        assert server.requests[-2] == {**body, **streaming}
        messages.append({"role": "assistant", "content": expected})
    assert server.metric("serve_llm_disconnects_total") == disconnects
    page.press("New conversation")
    assert page.turns == []
    assert page.browser.switch_to.active_element == page.message
    page.send("hello there")
    assert page.turns == shown[:2]


def test_model_without_chat_template_continues_texts(page: ChatPage, server: Server) -> None:
    page.choose("model", "plain")
    page.set(temperature=0, max_tokens=5)
    assert page.element("mode").get_property("value") == "continue"
    assert not page.elements("#mode option[value=chat]")[0].is_enabled()
    text = "once upon"
    page.send(text)
    page.send()  # nothing more to say: it goes on by itself
    for _, shown in page.turns[1:]:
        body = {"model": "plain", "prompt": text, "temperature": 0, "max_tokens": 5}
        document = httpx.post(f"{server.url}v1/completions", json=body).json()
        assert shown == document["choices"][0]["text"]
        text += shown
    assert len(page.turns) == 3
    page.choose("model", "chatty")
    assert page.element("mode").get_property("value") == "chat"


@pytest.mark.parametrize("way", ["Escape", "button", "New conversation"])
def test_stopping_stops_the_server(page: ChatPage, server: Server, way: str) -> None:
    page.set(temperature=0, max_tokens=64000)
    tokens = server.metric("serve_llm_generated_tokens_total")
    disconnects = server.metric("serve_llm_disconnects_total")
    page.message.send_keys("go on\n")
    page.wait(lambda: page.figures)
    if way == "Escape":
        page.message.send_keys(Keys.ESCAPE)
    else:
        page.press({"button": "Stop"}.get(way, way))
    page.wait_until_done()
    assert page.status == "Stopped."
    page.wait(lambda: server.metric("serve_llm_sequences{") == 0)
    page.wait(lambda: server.metric("serve_llm_disconnects_total") == disconnects + 1)
    assert server.metric("serve_llm_generated_tokens_total") - tokens < 64000
    assert page.element("send").is_displayed()
    if way == "New conversation":
        assert page.turns == []
        return
    assert page.figures.endswith("stopped")
    begun = page.answer
    page.element("max_tokens").clear()
    page.set(max_tokens=3)
    page.press("Regenerate")
    page.wait_until_done()
    assert page.answer == begun[:3]


def test_refusal_of_the_server_is_shown(page: ChatPage) -> None:
    page.set(max_tokens=80000)
    page.send("hello")
    assert f"maximum context length is {CAPACITY} tokens" in page.error
    assert page.message.get_property("value") == "hello"


def test_settings_out_of_range_are_not_sent(page: ChatPage, server: Server) -> None:
    sent = len(server.requests)
    page.set(temperature=9)
    page.press("Settings")
    page.send("hello")
    assert page.browser.switch_to.active_element == page.element("temperature")
    assert page.message.get_property("value") == "hello"
    assert len(server.requests) == sent


def test_phone(page: ChatPage, server: Server) -> None:
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        page = ChatPage(page.browser, server.url)
        assert not page.element("settings").is_displayed()
        server.script.append(stream([piece(f"{'long' * 99}\n```\n{'wide ' * 99}"), ending(1)]))
        page.send("hello" * 50)
        for _ in ("conversation", "settings"):
            width = page.browser.execute_script("return document.documentElement.scrollWidth")
            assert width == 360
            page.press("Settings")
        page.press("Settings")
        assert page.element("temperature").is_displayed()
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name(page: ChatPage, server: Server) -> None:
    server.script.append(stream([piece("```\ncode"), ending(1)]))
    page.send("go")
    controls = page.elements(":is(button, input, select, textarea, [role=log])")
    names = {control.get_attribute("id"): control.accessible_name for control in controls}
    shown = [control for control in controls if control.is_displayed()]
    assert len(shown) > 15
    assert all(control.accessible_name for control in shown), names
    assert page.element("transcript").aria_role == "log"
    assert page.element("error").get_attribute("role") == "alert"


def test_answer_is_shown_while_it_comes(page: ChatPage, server: Server) -> None:
    gate = threading.Event()

    def parts() -> Iterator[bytes]:
        yield piece("Half")
        assert gate.wait(10)
        yield piece(" and half")
        yield ending(5)

    server.script.append(stream(parts()))
    page.message.send_keys("go\n")
    page.wait(lambda: page.turns[1:] == [("Model", "Half")])
    article = page.elements("article")[-1]
    assert page.status == BUSY
    assert article.get_attribute("aria-busy") == "true"
    assert page.figures.startswith("about 1 token · first after ")
    assert page.element("stop").is_displayed()
    assert not page.element("send").is_displayed()
    gate.set()
    page.wait_until_done()
    assert page.answer == "Half and half"
    assert article.get_attribute("aria-busy") == "false"
    figures = r"5 tokens · after 7 of the prompt · [\d.]+ tokens/s · first after [\d.]+ s"
    assert re.fullmatch(figures, page.figures)
    assert page.element("send").is_displayed()


def test_empty_answer_is_an_answer(page: ChatPage, server: Server) -> None:
    server.script.append(stream([ending(1)]))
    page.send("go")
    assert page.turns == [("You", "go"), ("Model", "")]
    assert page.figures == "1 token · after 7 of the prompt"


def test_text_of_a_model_stays_text(page: ChatPage, server: Server) -> None:
    text = f"{HOSTILE}\n\n```python\n{CODE}```\n\nthen **more**\n```\nopen"
    server.script.append(stream([*map(piece, text), ending(len(text))]))
    page.send(HOSTILE)
    assert page.turns[0] == ("You", HOSTILE)
    article = page.elements("article")[-1]
    assert [p.get_property("textContent") for p in article.find_elements(By.TAG_NAME, "p")] == [
        HOSTILE,
        "then **more**",
    ]
    codes = article.find_elements(By.CSS_SELECTOR, "figure pre > code")
    assert [code.get_property("textContent") for code in codes] == [CODE.rstrip("\n"), "open"]
    assert "monospace" in codes[0].value_of_css_property("font-family")
    assert not page.elements("article :is(img, b, script)")
    assert page.browser.execute_script("return window.hacked") is None


def test_copying_puts_the_source_on_the_clipboard(page: ChatPage, server: Server) -> None:
    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
    text = f"Look:\n```python\n{CODE}```"
    server.script.append(stream([piece(text), ending(1)]))
    page.send("go")
    for label, expected in {"Copy": text, "Copy code": CODE.rstrip("\n")}.items():
        page.press(label)
        page.wait(lambda: any(b.text == "Copied" for b in page.elements("button")))
        page.message.send_keys(Keys.CONTROL, "av")
        assert page.message.get_property("value") == expected


def test_refusals_are_sentences_and_the_message_comes_back(page: ChatPage, server: Server) -> None:
    server.script.append(refusal(429, "All 64 places are taken.", **{"Retry-After": "3"}))
    page.send("hello")
    assert page.error == "All 64 places are taken. The server asks to wait for 3 seconds."
    assert page.turns == []
    assert page.message.get_property("value") == "hello"
    server.script.append(stream([piece("Hi"), ending(1)]))
    page.send()
    assert page.turns == [("You", "hello"), ("Model", "Hi")]
    assert page.error == ""


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (event(error_document("The worker ended.")), "The worker ended."),
        (b"", "The answer broke off before its end: try again."),
    ],
    ids=["reported", "silent"],
)
def test_error_in_the_middle_keeps_what_came(
    page: ChatPage, server: Server, last: bytes, sentence: str
) -> None:
    server.script.append(stream([piece("Once"), last]))
    page.send("go")
    assert page.error == sentence
    assert page.answer == "Once"
    assert page.figures.endswith("broken off")
    server.script.append(stream([piece("Twice"), ending(1)]))
    page.press("Regenerate")
    page.wait_until_done()
    assert page.turns == [("You", "go"), ("Model", "Twice")]
    assert page.error == ""
    assert server.requests[-1] == server.requests[-2]


def test_api_key_is_asked_for_and_kept_in_the_tab_only(
    page: ChatPage, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sesame-" * 8
    monkeypatch.setattr(server.state, "keys", KeyStore.open(None, {"EXPORT_LLM_API_KEY": secret}))
    page.set(max_tokens=3)
    page.message.send_keys("go\n")
    dialog = page.element("key-dialog")
    for key in ("wrong", secret):
        page.wait(dialog.is_displayed)
        assert "Incorrect API key provided" in dialog.text
        page.element("key").send_keys(f"{key}\n")
    page.wait_until_done()
    assert len(page.answer) == 3
    assert server.keys[-3:] == [None, "Bearer wrong", f"Bearer {secret}"]
    stored = page.browser.execute_script(
        "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert stored == [[secret], 0, ""]


def test_no_key_given_is_no_answer(page: ChatPage, server: Server) -> None:
    server.script.append(refusal(401, "Give a key."))
    page.message.send_keys("go\n")
    page.wait(page.element("key-dialog").is_displayed)
    page.press("Cancel")
    page.wait_until_done()
    assert page.error == "Give a key."
    assert page.message.get_property("value") == "go"


def test_events_and_characters_may_be_split_anywhere(page: ChatPage) -> None:
    script = """
        const [bytes, size, done] = arguments;
        const body = new ReadableStream({
            start(controller) {
                for (let at = 0; at < bytes.length; at += size) {
                    controller.enqueue(Uint8Array.from(bytes.slice(at, at + size)));
                }
                controller.close();
            },
        });
        (async () => {
            const { eventData } = await import(new URL("sse.js", document.baseURI));
            const data = [];
            for await (const each of eventData(body)) data.push(each);
            return data;
        })().then(done, (error) => done(String(error)));
    """
    whole = "data: grün 日本\r\ndata: 🙂\r\n\r\n: comment\nevent: x\ndata:a\n\ndata: [DONE]\n\n"
    text = f"{whole}data: cut"
    for size in (1, 2, 3, 5, 7, 1000):
        data = page.browser.execute_async_script(script, list(text.encode()), size)
        assert data == ["grün 日本\n🙂", "a", "[DONE]"], size
