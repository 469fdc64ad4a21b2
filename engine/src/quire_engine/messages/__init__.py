"""What a model writes -> reasoning, content and tool calls; and the grammars that make it write calls.

Text only: no torch, no HTTP.
"""
