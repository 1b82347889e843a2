"""The two tokenizers of a model, of transformers and of llama.cpp, and whether they agree."""
