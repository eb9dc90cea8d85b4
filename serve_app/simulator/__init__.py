"""An offline OpenAI-compatible provider that answers any DSPy signature, well or badly, as told."""
