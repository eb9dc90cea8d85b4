"""Pure decisions: no I/O, no logging, no clock of their own."""
