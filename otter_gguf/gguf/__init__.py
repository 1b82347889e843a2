"""GGUF files in Python: what a sidecar holds, how it is bound to its base, how files are written and merged.

Reading and checking of bytes is native (:class:`otter_gguf._native.GgufFile`); everything here works on checked files.
"""
