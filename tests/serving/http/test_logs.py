"""Logs: secrets go in by every way there is, and the lines are searched for them."""

import io
import json
import logging
import secrets
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from serving.http.keys import KeyStore, create_key
from serving.http.listening import check_listening
from serving.http.logs import RequestLog, configure_logs, log_request
from serving.http.request_limits import RequestLimits
from tests.serving.http.live_server import serving_at

PROMPT = "the launch code is 8215 and the dog is called Waldi"
COMPLETION = "Waldi answers that the code has been changed"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged; the loggers are afterwards as they were before."""
    loggers = [logging.getLogger(name) for name in ("serving", "uvicorn")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    stream = io.StringIO()
    configure_logs(stream=stream)
    yield stream
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def entries(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_request_is_one_line(lines: io.StringIO) -> None:
    log_request(
        RequestLog(
            request_id="r1",
            method="POST",
            route="/v1/completions",
            status=200,
            seconds=0.12345678,
            key="ci",
            model="tiny",
            prompt_tokens=5,
            new_tokens=7,
        )
    )
    (entry,) = entries(lines)
    assert datetime.fromisoformat(entry.pop("time")).tzinfo is not None
    assert entry == {
        "level": "info",
        "logger": "serving.http.requests",
        "message": "request",
        "request_id": "r1",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "seconds": 0.123457,
        "key": "ci",
        "model": "tiny",
        "prompt_tokens": 5,
        "new_tokens": 7,
        "disconnected": False,
    }


class Body(BaseModel):
    prompt: int


def make_app() -> FastAPI:
    """An application that fails in ways that quote what it was sent."""
    app = FastAPI()

    @app.post("/{kind}")
    async def fail(kind: str, request: Request) -> None:
        body = await request.body()
        log = logging.getLogger("serving.http.app")
        log.warning("key %s, header %s", request.headers["x-key"], request.headers["authorization"])
        if kind == "value":
            raise ValueError(body.decode())
        if kind == "chained":
            try:
                int(body)
            except ValueError as error:
                raise RuntimeError(COMPLETION) from error
        if kind == "group":
            raise ExceptionGroup(PROMPT, [ValueError(body.decode())])
        Body.model_validate_json(body)

    return app


def test_no_prompt_completion_or_key_is_ever_logged(lines: io.StringIO, tmp_path: Path) -> None:
    secret = create_key(tmp_path / "keys.json", "ci", ("generate",))
    other = "Bearer " + secrets.token_hex(20)
    options = check_listening("127.0.0.1", 0, keys=()).uvicorn_options(RequestLimits())
    with serving_at(make_app(), options) as port:
        for kind in ("value", "chained", "group", "pydantic"):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/{kind}",
                params={"query": PROMPT},
                content=PROMPT,
                headers={"x-key": secret, "authorization": other},
            )
            assert answer.status_code == 500
        httpx.post(f"http://127.0.0.1:{port}/{PROMPT}", headers={"x-key": "", "authorization": ""})
    text = lines.getvalue()
    for leak in (PROMPT, "Waldi", "8215", COMPLETION, secret, secret[5:20], other[7:]):
        assert leak not in text
    failures = [entry for entry in entries(lines) if "exceptions" in entry]
    assert [failure["exceptions"][0]["type"] for failure in failures[:4]] == [
        "builtins.ValueError",
        "builtins.RuntimeError",
        "builtins.ExceptionGroup",
        "pydantic_core._pydantic_core.ValidationError",
    ]
    assert any(" fail" in frame for frame in failures[0]["exceptions"][0]["frames"])
    assert failures[1]["exceptions"][1]["type"] == "builtins.ValueError"


def test_a_key_file_that_broke_is_logged_without_what_is_in_it(
    lines: io.StringIO, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    secret = create_key(file, "ci", ("generate",))
    store = KeyStore.open(file, {})
    file.write_text(json.dumps({"keys": [{"name": PROMPT, "sha256": secret}]}))
    assert store.authenticate(secret) is None
    assert secret not in lines.getvalue()
    assert PROMPT not in lines.getvalue()
    assert "The key file can't be read" in entries(lines)[0]["message"]


def test_other_packages_stay_silent(lines: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("httpx").info(PROMPT)
    logging.getLogger("serving.generation").info("began")
    assert [entry["message"] for entry in entries(lines)] == ["began"]
    assert "Waldi" not in capfd.readouterr().err


def test_warnings_of_other_packages_are_silent_too() -> None:
    # In a process of its own, whose root logger has no handlers of pytest's.
    code = (
        "import logging\n"
        "from serving.http.logs import configure_logs\n"
        "configure_logs()\n"
        "logging.getLogger('asyncio').error('Waldi')\n"
        "logging.getLogger('serving').info('began')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stderr)["message"] == "began"
