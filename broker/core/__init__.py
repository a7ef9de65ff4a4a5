"""The broker as a synchronous state machine: no socket, no clock, no thread, no randomness."""
