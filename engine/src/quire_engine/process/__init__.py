"""The engine in a process of its own, and the link to it: one message per step each way."""
