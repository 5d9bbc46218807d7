"""The chat page, in headless Chromium, over the real server."""

import threading
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

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

HOSTILE = '<img src=x onerror="window.hacked = 1"><b>bold</b> &amp; '
CODE = "def f(x):\n    return x  # <script>window.hacked = 1</script>\n"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with headless_chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


class Server(ScriptedAnswers):
    url: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    import sys; sys.path.insert(0, "/tmp/page-scratch")
    from stub_app import app
    server = Server(app)
    with running_server(server) as server.url:
        yield server


@pytest.fixture
def page(browser: Chrome, server: Server) -> Iterator[ChatPage]:
    page = ChatPage(browser, server.url)
    yield page
    # A breach of the content security policy is logged here.
    unexpected = [e["message"] for e in browser.get_log("browser") if e["source"] != "network"]
    assert not unexpected


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
    assert page.figures.startswith("5 tokens · after 7 of the prompt · ")
    assert page.element("send").is_displayed()


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


def test_refusals_are_sentences_and_the_message_comes_back(
    page: ChatPage, server: Server
) -> None:
    server.script.append(refusal(429, "All 64 places are taken.", **{"Retry-After": "3"}))
    page.send("hello")
    assert page.error == "All 64 places are taken. Try again in 3 seconds."
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


def test_api_key_is_asked_for_and_kept_in_the_tab_only(page: ChatPage, server: Server) -> None:
    server.script.append(refusal(401, "Give a key."))
    page.message.send_keys("go\n")
    dialog = page.element("key-dialog")
    page.wait(dialog.is_displayed)
    assert "Give a key." in dialog.text
    server.script.append(refusal(401, "That key is unknown."))
    page.element("key").send_keys("wrong\n")
    page.wait(lambda: "That key is unknown." in dialog.text)
    server.script.append(stream([piece("Hi"), ending(1)]))
    page.element("key").send_keys("sesame\n")
    page.wait_until_done()
    assert page.answer == "Hi"
    assert server.keys[-3:] == [None, "Bearer wrong", "Bearer sesame"]
    stored = page.browser.execute_script(
        "return [Object.values(sessionStorage), localStorage.length, document.cookie]"
    )
    assert stored == [["sesame"], 0, ""]


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
    text = "data: grün 日本 🙂\r\n\r\n: comment\nevent: x\ndata: a\ndata:b\n\ndata: [DONE]\n\ndata: cut"
    for size in (1, 2, 3, 5, 7, 1000):
        data = page.browser.execute_async_script(script, list(text.encode()), size)
        assert data == ["grün 日本 🙂", "a\nb", "[DONE]"], size
