"""The chat page in a real Chromium, over a real gateway: what somebody who uses it sees and sends."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.running_gateway import CONTENT, MODEL, REASONING, Gateway, run_gateway
from trillion_serve.chat.tokenizer import ChatTokenizer
from trillion_serve.gateway.security.front import FrontSettings
from trillion_serve.gateway.security.keys import ApiKey, Keyring, digest_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

OpenPage = Callable[..., "Page"]
SLOW: Any = pytest.mark.parametrize("gateway", [{"interval": 0.02}], indirect=True)
CHAT = "**/v1/chat/completions"
SECRET = "tsk-a-key-of-this-test"


def expect(locator: Any) -> Any:
    """Playwright's own assertions, which wait until they hold."""
    from playwright.sync_api import expect as waiting

    return waiting(locator)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """One browser for the module: tests have contexts of their own in it."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[OpenPage]:
    """Opens the page of a gateway as somebody new. No script may fail, and the page's policy must never be broken."""
    complaints: list[str] = []
    contexts = []

    def open_page(gateway: Gateway, *, ready: bool = True, **options: Any) -> "Page":
        context = browser.new_context(**{"locale": "en-GB", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Failed to load" not in said.text else None)
        page.goto(gateway.url.removesuffix("/v1") + "/")
        if ready:
            expect(page.get_by_label("Model", exact=True).or_(page.get_by_label("모델"))).to_have_value(MODEL)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def guarded(tokenizer: ChatTokenizer) -> Iterator[Gateway]:
    """A gateway that wants a key."""
    front = FrontSettings(keys=Keyring([ApiKey("test", digest_of(SECRET))]), metrics_public=False)
    with run_gateway(tokenizer, front=front) as gateway:
        yield gateway


def say(page: "Page", text: str) -> None:
    """Write a message and send it with Enter."""
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")


def ask(page: "Page", text: str) -> dict[str, Any]:
    """Send a message, wait for the whole answer, and return the request's body."""
    turns = page.locator("article").count()
    with page.expect_request(CHAT) as sent:
        say(page, text)
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(turns + 1)
    return json.loads(sent.value.post_data or "")


def wait_for(condition: Callable[[], object]) -> None:
    """Wait for something outside of the browser."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)


@SLOW
def test_reasoning_streams_open_and_collapses_when_the_answer_begins(gateway: Gateway, open_page: OpenPage) -> None:
    gateway.reply = f"{REASONING * 3}\n</think>\n\n{CONTENT * 8}"
    page = open_page(gateway)
    say(page, "둘은?")
    reasoning = page.locator("details.reasoning")
    expect(reasoning).to_have_attribute("open", "")
    expect(reasoning.locator(".thoughts")).to_contain_text("생각해 보자.")
    expect(reasoning.locator("summary")).to_have_text("Thinking")
    assert page.locator(".prose").inner_text() == ""

    expect(page.locator(".prose")).to_contain_text("답")
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    expect(reasoning).not_to_have_attribute("open", "")

    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".prose")).to_have_text(CONTENT * 8)
    reasoning.locator("summary").click()
    expect(reasoning.locator(".thoughts")).to_be_visible()
    expect(reasoning.locator(".thoughts")).to_have_text(REASONING * 3, use_inner_text=True)


def test_an_answer_tells_its_speed_and_its_tokens(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    body = ask(page, "둘은?")
    assert body["stream_options"] == {"include_usage": True}
    usage = gateway.post().json()["usage"]
    total, reasoning = usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < reasoning < total
    figures = rf"[\d,.]+ tokens/s · first token [\d.]+ m?s · {total} tokens, {reasoning} of them thinking"
    expect(page.locator(".figures")).to_have_text(re.compile(f"^{figures}$"))
    expect(page.locator("summary")).to_have_text(re.compile(rf"^Thought for [\d.]+ m?s · {reasoning} tokens$"))


def test_thinking_can_be_switched_off(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    assert ask(page, "1")["chat_template_kwargs"] == {"enable_thinking": True}
    gateway.reply = CONTENT
    page.get_by_role("switch", name="Thinking").uncheck()
    expect(page.get_by_label("Thinking budget in tokens")).to_be_disabled()
    assert ask(page, "2")["chat_template_kwargs"] == {"enable_thinking": False}
    last = page.locator("article").last
    expect(last.locator(".prose")).to_have_text(CONTENT)
    expect(last.locator("details")).to_be_hidden()


def test_a_budget_is_sent_only_when_it_is_set(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    budget = page.get_by_label("Thinking budget in tokens")
    assert "thinking_token_budget" not in ask(page, "1")
    budget.fill("3")
    assert ask(page, "2")["thinking_token_budget"] == 3
    expect(page.locator(".figures").last).to_contain_text("thinking ended at its limit")
    page.get_by_role("switch", name="Thinking").uncheck()
    assert "thinking_token_budget" not in ask(page, "3")


def test_a_wrong_budget_is_refused_before_it_is_sent(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    budget = page.get_by_label("Thinking budget in tokens")
    budget.fill("-1")
    say(page, "x")
    assert "whole number" in budget.evaluate("element => element.validationMessage")
    expect(page.locator("article")).to_have_count(0)
    budget.fill("10")
    assert ask(page, "x")["thinking_token_budget"] == 10


@SLOW
@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_aborts_in_the_engine_and_keeps_what_came(gateway: Gateway, open_page: OpenPage, way: str) -> None:
    gateway.reply = f"{REASONING}\n</think>\n\n{CONTENT * 40}"
    page = open_page(gateway)
    say(page, "둘은?")
    expect(page.locator(".prose")).to_contain_text(CONTENT)
    if way == "button":
        page.get_by_role("button", name="Stop", exact=True).click()
    else:
        page.keyboard.press("Escape")
    wait_for(lambda: len(gateway.engine.aborted) == 1)
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".figures")).to_contain_text("stopped")
    kept = page.locator(".prose").inner_text()
    assert kept.startswith(CONTENT) and len(kept) < len(CONTENT * 40)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()

    gateway.reply = CONTENT
    page.get_by_role("switch", name="Thinking").uncheck()
    messages = ask(page, "그리고?")["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"].startswith(CONTENT)


def test_past_answers_go_back_without_their_reasoning(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    ask(page, "첫째")
    assert ask(page, "둘째")["messages"] == [
        {"role": "user", "content": "첫째"},
        {"role": "assistant", "content": CONTENT},
        {"role": "user", "content": "둘째"},
    ]
    page.get_by_role("button", name="Clear the conversation").click()
    expect(page.locator("article")).to_have_count(0)
    assert ask(page, "처음부터")["messages"] == [{"role": "user", "content": "처음부터"}]


def test_what_a_model_writes_stays_text(gateway: Gateway, open_page: OpenPage) -> None:
    attack = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
    gateway.reply = (
        f"<b>{attack}\n</think>\n\n{attack}\n\n`<i>` **<u>**\n\n```html\n{attack}\n  두 칸\n```\n끝\n둘째 줄"
    )
    page = open_page(gateway)
    ask(page, attack)
    assert page.locator(".question p").inner_text() == attack
    assert page.locator(".thoughts").text_content() == f"<b>{attack}"
    assert page.locator(".prose > p").all_inner_texts() == [attack, "<i> <u>", "끝\n둘째 줄"]
    assert page.locator(".prose > pre code").text_content() == f"{attack}\n  두 칸"
    assert page.locator("article :is(img, script, b, i, u)").count() == 0
    assert page.title() == "trillion-serve chat"


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(guarded: Gateway, open_page: OpenPage) -> None:
    page = open_page(guarded, ready=False)
    dialog = page.get_by_role("dialog", name="This server asks for an API key")
    expect(dialog).to_contain_text("an API key is needed here")
    dialog.get_by_label("API key").fill("tsk-wrong")
    dialog.get_by_label("API key").press("Enter")
    expect(dialog).to_contain_text("this key is not known here")
    dialog.get_by_label("API key").fill(SECRET)
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model")).to_have_value(MODEL)
    ask(page, "둘은?")
    expect(page.locator(".prose")).to_have_text(CONTENT)
    assert page.evaluate("Object.values(sessionStorage)") == [SECRET]
    assert SECRET not in page.evaluate("JSON.stringify(localStorage)") + page.content() + page.url

    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0
    say(page, "그리고?")
    expect(dialog).to_contain_text("an API key is needed here")
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("article").last.locator(".failure")).to_contain_text("an API key is needed here")


def test_an_error_is_told_in_the_servers_words_and_can_be_retried(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    gateway.engine.kill()
    ask(page, "둘은?")
    said = gateway.post().json()["error"]["message"]
    expect(page.locator(".failure", has_text=said)).to_be_visible()
    with page.expect_request(CHAT) as sent:
        page.get_by_role("button", name="Try again").last.click()
    assert json.loads(sent.value.post_data or "")["messages"] == [{"role": "user", "content": "둘은?"}]


@SLOW
def test_an_engine_that_dies_in_an_answer_leaves_what_came(gateway: Gateway, open_page: OpenPage) -> None:
    gateway.reply = f"{REASONING}\n</think>\n\n{CONTENT * 40}"
    page = open_page(gateway)
    say(page, "둘은?")
    expect(page.locator(".prose")).to_contain_text(CONTENT)
    gateway.engine.kill()
    expect(page.locator("article .failure")).to_contain_text("stopped")
    expect(page.locator(".prose")).to_contain_text(CONTENT)


def test_the_language_follows_the_browser_and_can_be_switched(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway, locale="ko-KR")
    expect(page.locator("html")).to_have_attribute("lang", "ko")
    expect(page.get_by_placeholder("메시지를 입력하세요")).to_be_visible()
    ask(page, "둘은?")
    expect(page.locator("summary")).to_contain_text("동안 생각함")
    page.get_by_role("button", name="View in English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("summary")).to_contain_text("Thought for")
    expect(page.get_by_placeholder("Write a message")).to_be_visible()
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_both_languages_have_every_word(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    words = page.evaluate("import('/page/words.js').then(module => module.WORDS)")
    assert words["ko"].keys() == words["en"].keys()
    slots = {
        language: {name: sorted(re.findall(r"{\w+}", text)) for name, text in words[language].items()}
        for language in words
    }
    assert slots["ko"] == slots["en"]


def test_enter_that_ends_a_syllable_does_not_send(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    message = page.locator("#message")
    message.focus()
    keyboard = page.context.new_cdp_session(page)
    keyboard.send("Input.imeSetComposition", {"text": "안녕", "selectionStart": 2, "selectionEnd": 2})
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    keyboard.send("Input.insertText", {"text": "안녕"})
    # Safari has ended the composition when the key comes, and tells by the code alone.
    message.evaluate("e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))")
    expect(page.locator("article")).to_have_count(0)
    expect(message).to_have_value(re.compile("^안녕"))

    message.fill("안녕")
    message.press("Shift+Enter")
    message.press_sequentially("하세요")
    message.press("Enter")
    expect(page.locator(".question p")).to_have_text("안녕\n하세요", use_inner_text=True)
    expect(message).to_have_value("")


def test_everything_can_be_done_with_the_keyboard(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    expect(page.locator("#message")).to_be_focused()
    page.keyboard.type("둘은?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    expect(page.locator("#message")).to_be_focused()

    page.locator("#model").focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or reached[-1] == "message", f"{reached[-1]} does not show its focus"
        if reached[-1] == "SUMMARY":
            page.keyboard.press("Enter")
            expect(page.locator("details")).to_have_attribute("open", "")
        if reached[-1] == "budget":
            break
    order = ["clear", "theme", "language", "SUMMARY", "thoughts", "copy", "again", "message", "thinking", "budget"]
    assert reached == order


def test_a_reader_who_scrolls_up_is_left_there(gateway: Gateway, open_page: OpenPage) -> None:
    gateway.reply = f"{REASONING}\n</think>\n\n" + "\n\n".join(f"{line} 줄" for line in range(80))
    page = open_page(gateway, viewport={"width": 800, "height": 600})
    ask(page, "길게")
    below = "({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight"
    scroller = page.locator("#scroller")
    wait_for(lambda: scroller.evaluate(below) < 2)
    scroller.evaluate("element => { element.scrollTop = 100 }")
    expect(page.get_by_role("button", name="To the latest")).to_be_visible()
    page.locator(".prose").evaluate("element => element.append(document.createElement('pre'))")
    assert scroller.evaluate("element => element.scrollTop") == 100
    page.get_by_role("button", name="To the latest").click()
    wait_for(lambda: scroller.evaluate(below) < 2)
    expect(page.get_by_role("button", name="To the latest")).to_be_hidden()


@SLOW
def test_the_kv_cache_is_shown_while_somebody_looks(gateway: Gateway, open_page: OpenPage) -> None:
    page = open_page(gateway)
    expect(page.get_by_role("meter", name="KV cache in use")).to_have_text(re.compile(r"KV\s*[\d.]+%"))
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/metrics") else None)
    page.wait_for_timeout(3500)
    assert asked == []
    page.evaluate("delete document.hidden")
    with page.expect_request("**/metrics"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_the_kv_cache_is_hidden_where_it_is_refused(guarded: Gateway, open_page: OpenPage) -> None:
    page = open_page(guarded, ready=False)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#kv")).to_be_hidden()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ('vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25', 0.25),
        ('vllm:kv_cache_usage_perc{model_name="m"} 0.25\nvllm:kv_cache_usage_perc{model_name="m"} 0.75', 0.5),
        ('vllm:kv_cache_usage_perc{model_name="other"} 0.25\nvllm:kv_cache_usage_perc{model_name="m"} 1e-2', 0.01),
        ("vllm:kv_cache_usage_perc 0.5", 0.5),
        ('vllm:kv_cache_usage_perc{model_name="other"} 0.25', None),
        ('vllm:kv_cache_usage_perc{model_name="m"} NaN', None),
        ("# HELP vllm:kv_cache_usage_perc Share.\nvllm:other 1", None),
        ("", None),
    ],
)
def test_the_gauge_is_read_for_the_chosen_model(
    gateway: Gateway, open_page: OpenPage, text: str, share: float | None
) -> None:
    read = "text => import('/page/kv.js').then(module => module.usageOf(text, 'm'))"
    assert open_page(gateway).evaluate(read, text) == share


def test_events_are_the_same_however_they_are_split(gateway: Gateway, open_page: OpenPage) -> None:
    stream = ': 주석\r\ndata: {"가": 1}\r\n\r\nevent: x\ndata:둘\ndata: 줄\n\ndata: [DONE]\n\ndata: never ended'
    split = """async (stream) => {
        const { EventDecoder } = await import("/page/sse.js");
        const seen = [];
        for (let i = 0; i <= stream.length; i++) for (let j = i; j <= stream.length; j++) {
            const decoder = new EventDecoder();
            const pieces = [stream.slice(0, i), stream.slice(i, j), stream.slice(j)];
            seen.push(JSON.stringify(pieces.flatMap((piece) => decoder.decode(piece))));
        }
        return [...new Set(seen)];
    }"""
    (events,) = open_page(gateway).evaluate(split, stream)
    assert json.loads(events) == ['{"가": 1}', "둘\n줄", "[DONE]"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_can_be_switched(gateway: Gateway, open_page: OpenPage, scheme: Any) -> None:
    page = open_page(gateway, color_scheme=scheme)
    darkness = "parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) < 128"
    assert page.evaluate(darkness) == (scheme == "dark")
    page.get_by_role("button", name="Switch between dark and light").click()
    assert page.evaluate(darkness) == (scheme == "light")
    page.reload()
    assert page.evaluate(darkness) == (scheme == "light")


def test_nothing_is_cut_off_on_a_phone(gateway: Gateway, open_page: OpenPage) -> None:
    gateway.reply = f"{REASONING}\n</think>\n\n{'끝없는낱말' * 40}\n\n```\n{'x' * 300}\n```"
    page = open_page(gateway, viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True)
    ask(page, "둘은?" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("#scroller").evaluate("e => e.scrollWidth - e.clientWidth") == 0
    for part in ("#model", "#clear", "#language", "#send", "#thinking", "#budget"):
        box = page.locator(part).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 320, part
