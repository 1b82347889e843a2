"""An insertion as a Hugging Face folder (adapter, widened checkpoint), declared once for training and converters."""
