"""One outside thing per file: nothing else in the project talks to it."""
