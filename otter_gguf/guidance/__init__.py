"""Guided decoding: policies that score every candidate for the next token, and searches that judge whole segments.

One policy or search a file, by the name of which command lines know it (:mod:`otter_gguf.guidance.rules`). Their
classes are imported from :mod:`otter_gguf`.
"""
