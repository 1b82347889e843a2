"""Models for many callers: in an event loop (AsyncOtter), and over HTTP (``otter-gguf serve``)."""
