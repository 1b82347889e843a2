"""Chat templates of GGUF files, rendered in a process of their own."""

from .template import MAX_OUTPUT, MAX_TEMPLATE, ChatTemplate, checked_messages, json_schema_of

__all__ = ["MAX_OUTPUT", "MAX_TEMPLATE", "ChatTemplate", "checked_messages", "json_schema_of"]
