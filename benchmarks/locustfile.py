"""A mix of chats for locust: Korean and English, thinking on and off, tools, streams, and users who leave early.

    pip install 'trillion-serve[bench]'
    locust -f benchmarks/locustfile.py --headless --host http://127.0.0.1:8000 --users 20 --spawn-rate 5 --run-time 1m

The key, where the gateway wants one, comes from OPENAI_API_KEY. Time to first token is reported as requests of its
own ("ttft ..."), and so are answers that were left early ("left ...").
"""

import json
import os
import random
import time
from typing import Any

from locust import HttpUser, between, events, task

QUESTIONS = {
    "ko": ("한글로 읽어 보세요: {n}", "다음 중 더 큰 수는? {n}, 58", "{n}보다 하나 큰 수는?"),
    "en": ("How do you read {n}", "Which is larger, {n} or 58?", "What comes after {n}?"),
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@events.test_start.add_listener
def only_the_loopback(environment: Any, **_: Any) -> None:
    """Refuse to load anything but this machine."""
    if not str(environment.host).startswith(("http://127.0.0.1", "http://localhost")):
        raise SystemExit(f"{environment.host} is not on the loopback; this file loads nothing else")


class ChatUser(HttpUser):
    """Someone who chats, and waits a moment between questions."""

    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        """Learn the model's name."""
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            self.client.headers["Authorization"] = f"Bearer {key}"
        self.model = self.client.get("/v1/models").json()["data"][0]["id"]

    @task(5)
    def think(self) -> None:
        """A streamed answer with its reasoning."""
        self._stream("think", {})

    @task(3)
    def think_little(self) -> None:
        """A streamed answer after at most 32 tokens of reasoning."""
        self._stream("budget", {"thinking_token_budget": 32})

    @task(4)
    def answer_directly(self) -> None:
        """A whole answer without reasoning."""
        body = self._body({"chat_template_kwargs": {"enable_thinking": False}})
        self.client.post("/v1/chat/completions", json=body, name="direct")

    @task(2)
    def use_tools(self) -> None:
        """A call of a function."""
        body = self._body({"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False})
        self.client.post("/v1/chat/completions", json=body, name="tools")

    @task(2)
    def leave_early(self) -> None:
        """A stream that its reader leaves after a few events."""
        self._stream("left", {}, events_to_read=random.randint(1, 8))

    def _body(self, extra: dict[str, Any]) -> dict[str, Any]:
        question = random.choice(QUESTIONS[random.choice(("ko", "en"))]).format(n=random.randint(100, 999))
        return {"model": self.model, "messages": [{"role": "user", "content": question}], "max_tokens": 128, **extra}

    def _stream(self, name: str, extra: dict[str, Any], events_to_read: int | None = None) -> None:
        began = time.perf_counter()
        body = self._body(extra) | {"stream": True}
        with self.client.post("/v1/chat/completions", json=body, stream=True, name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}: {answer.text[:200]}")
                return
            seen, ended = 0, False
            for line in answer.iter_lines():
                if not line.startswith(b"data: "):
                    continue
                seen += 1
                if seen == 1:
                    self._report(f"ttft {name}", began)
                ended = line == b"data: [DONE]"
                if not ended and "error" in json.loads(line[6:]):
                    answer.failure(line.decode())
                    return
                if seen == events_to_read:
                    break
            if ended or seen == events_to_read:
                answer.success()
            else:
                answer.failure("the stream broke off")

    def _report(self, name: str, began: float) -> None:
        milliseconds = 1000 * (time.perf_counter() - began)
        self.environment.events.request.fire(
            request_type="SSE", name=name, response_time=milliseconds, response_length=0, exception=None, context={}
        )
