"""What a client gets to see of an answer's reasoning."""

from trillion_model.vaetki.chat_format import THINK_END, THINK_START
from trillion_serve.chat.message import MessageDelta
from trillion_serve.chat.thinking import ALL_OF_IT, ReasoningView


class Viewer:
    """Turns the deltas of one answer into those that a client asked to see."""

    def __init__(self, view: ReasoningView) -> None:
        self._view = view
        self._all_of_it = view == ALL_OF_IT
        self._held = ""
        self._tagged = False
        self._closed = False

    def show(self, delta: MessageDelta, *, thinks: bool, last: bool) -> MessageDelta:
        """What is seen of a delta.

        Args:
            delta: what the model wrote.
            thinks: more reasoning may come.
            last: nothing more will come.
        """
        if self._all_of_it:
            return delta
        reasoning = delta.reasoning if self._view.returned else ""
        if not self._view.streamed:
            self._held += reasoning
            reasoning = ""
            if last or not thinks:
                reasoning, self._held = self._held, ""
        if self._view.separate:
            return MessageDelta(reasoning, delta.content, delta.tool_calls)
        tagged = self._tag(reasoning, closes=last or bool(delta.content or delta.tool_calls))
        return MessageDelta("", tagged + delta.content, delta.tool_calls)

    def _tag(self, reasoning: str, *, closes: bool) -> str:
        text = reasoning
        if reasoning and not self._tagged:
            self._tagged = True
            text = f"{THINK_START}\n{reasoning}"
        if closes and self._tagged and not self._closed:
            self._closed = True
            text += f"\n{THINK_END}\n\n"
        return text
