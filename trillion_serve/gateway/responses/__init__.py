"""The Responses API between its requests and the answers: conversations, events, and responses that are kept."""
