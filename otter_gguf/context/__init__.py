"""A model in memory with its llama.cpp context: the texts in it, who uses it, and what is saved of it."""
